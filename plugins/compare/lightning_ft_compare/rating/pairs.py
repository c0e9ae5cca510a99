"""The pairs of answers that are rated: where they come from, their order, and which answer is shown on the left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import Conversation, Message
from lightning_ft_compare.evaluations import Side, check_same_rows, place_of, prompt_of, turns_asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import ScoredRow


@dataclass(frozen=True)
class Answers:
    """What both models answered to one prompt."""

    key: str
    """Stands for prompt, answers and the row's number: a rating belongs to exactly these."""
    row: str
    prompt: str
    turns: tuple[Message, ...]
    """What was asked, turn by turn."""
    of: tuple[str, str]
    """The answers of A and of B."""

    @property
    def same(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.of[0].strip() == self.of[1].strip()


def answers_of(sides: Sequence[Side], seed: int) -> list[Answers]:
    """The rows that both models answered, in the order in which they are rated: by a hash of seed and content.

    So the first ones are a random sample, and whoever stops early has rated one.

    Raises:
        UsageError: there are none.
    """
    one, other = (side.evaluation.rows for side in sides)
    found = []
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.prediction is not None and b.prediction is not None:
            prompt = prompt_of(a.example)
            key = _hash(number, prompt, a.prediction, b.prediction)
            found.append(Answers(key, a.row, prompt, turns_asked(a.example), (a.prediction, b.prediction)))
    if not found:
        raise UsageError(
            "Expected rows that both models answered, got none; name a metric that reads text with --metrics, so that answers "
            "are generated."
        )
    return sorted(found, key=lambda answers: _hash(seed, "order", answers.key))


def left_of(answers: Answers, rater: str, seed: int) -> str:
    """The letter of the model whose answer a rater sees on the left: a coin for each row and rater."""
    return "AB"[int(_hash(seed, "left", rater, answers.key), 16) % 2]


def digest_of(found: Sequence[Answers]) -> str:
    """Stands for all pairs."""
    return _hash(*sorted(answers.key for answers in found))


def read_sides(names: Sequence[str]) -> list[Side]:
    """Two files of predictions, as `score` reads them, each row with its prompt.

    Raises:
        UsageError: not two files, one of them twice, or different rows.
        DataError: a file that cannot be read, or rows without a prompt.
    """
    from lightning_ft.cli.score import read_predictions
    from lightning_ft.evaluation import Evaluation

    if len(names) != 2 or place_of(names[0]) == place_of(names[1]):
        raise UsageError(f"Expected --predictions to name two different files; got {' and '.join(names)}.")
    sides = [
        Side(letter, name, Evaluation({}, [_asked(row) for row in read_predictions(name)], {}), Path(name), None)
        for letter, name in zip("AB", names, strict=True)
    ]
    check_same_rows(*sides)
    return sides


def _asked(row: ScoredRow) -> ScoredRow:
    """A prediction with the prompt and the accepted answer as its example, which both models' rows have in common."""
    if row.prompt is None:
        raise DataError(f"{row.row}: expected 'prompt' to be the text that was asked, beside 'prediction'; got none.")
    turns = (Message("user", row.prompt), *(Message("assistant", text) for text in row.references[:1]))
    return dataclasses.replace(row, example=Conversation(turns))


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()[:24]
