"""Answers that people compared (preference pairs) or judged one by one (unpaired)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_ft.task import Task
from lightning_ft.types import Message, Preference, Unpaired
from lightning_ft_tasks.chat import COLUMNS as TURNS
from lightning_ft_tasks.chat import turn_of, turns_of
from lightning_ft_tasks.instruct import QUESTIONS, asked, first_of, text_of

CHOSEN, REJECTED = ("chosen", "chosen_messages"), ("rejected", "rejected_messages")
"""Columns of the better and of the worse answer, first match wins."""
LABELS = ("label", "kto_tag", "desirable")
"""Columns that say whether an answer was liked."""


@dataclass(frozen=True)
class PreferencePairs(Task):
    """A prompt with a better (`chosen`) and a worse (`rejected`) answer, in three layouts.

    1. Text: `instruction` (and `input`), `prompt` or `question`, with `chosen` and `rejected` as texts.
    2. Turns before the answers: `conversations` or `messages`, or `prompt` as a list, with `chosen` and `rejected` as one turn,
       a list of turns or a text each.
    3. Whole conversations: `chosen` and `rejected` (or `chosen_messages`, `rejected_messages`) are lists of turns with what
       the user says in them; what they have in common at the start is the prompt, whatever else repeats it.

    A turn's weight of 0 keeps it out of its answer; any other counts as 1.
    """

    name: ClassVar[str] = "preference"
    precedence: ClassVar[int] = 70
    metrics: ClassVar[tuple[str, ...]] = ("preference_accuracy", "preference_accuracy_avg", "preference_margin")
    makes: ClassVar[type[Preference]] = Preference
    columns_help: ClassVar[str] = "chosen, rejected, with a prompt (instruction, prompt, question) or conversations"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"instruction": "Greet.", "input": "", "chosen": "Hello.", "rejected": "What?"},
        {
            "conversations": [{"from": "human", "value": "Greet."}],
            "chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "What?"},
        },
        {
            "prompt": [{"role": "user", "content": "Greet."}],
            "chosen": [{"role": "assistant", "content": "Hello."}], "rejected": [{"role": "assistant", "content": "What?"}],
        },
        {
            "chosen": [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "What?"}],
        },
    )  # fmt: skip
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with two answers."""
        return first_of(CHOSEN, columns) is not None and first_of(REJECTED, columns) is not None

    def format(self, row: Mapping[str, Any]) -> Preference:
        """The pair of a row."""
        columns = first_of(CHOSEN, row), first_of(REJECTED, row)
        if columns[0] is None or columns[1] is None:
            raise ValueError(f"expected columns 'chosen' and 'rejected', got {', '.join(row) or 'none'}")
        prompt, read = _prompt(row)
        better, worse = (_answer(row, column) for column in columns if column)
        said = prompt or ()
        whole = any(_is_whole(turns) for turns in (better, worse)) and (
            not said or said[-1].role != "assistant" or (_repeats(better, said))
        )  # else they go on from what was said
        if prompt is None or whole:
            common = next(
                (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
            )
            prompt, better, worse = better[:common], better[common:], worse[common:]
            if not prompt or prompt[0].role != "system":
                system = text_of(row, "system", optional=True)
                first = [turn for turn in said if turn.role == "system"] or ([Message("system", system)] if system else [])
                prompt = (*first, *prompt)
        if not prompt and len(better) > 1:
            raise ValueError(f"expected '{columns[0]}' and '{columns[1]}' to begin with the same turns, got different ones")
        if not prompt:
            raise ValueError("expected a column with the prompt (instruction, prompt, question, conversations), got none")
        if whole and (other := next((turn for turn in said if not _stands_in(turn, (*prompt, *better))), None)):
            raise ValueError(
                f"expected '{columns[0]}' to be what is answered to the prompt, or the whole conversation with it, got a "
                f"conversation without its turn {other.content.strip()[:40]!r}"
            )
        if not better or not worse:
            raise ValueError(f"expected '{columns[0]}' and '{columns[1]}' to end in different answers, got none of their own")
        meta = {key: value for key, value in row.items() if key not in {*read, *columns}}
        return Preference(prompt, better, worse, meta)


@dataclass(frozen=True)
class UnpairedAnswers(Task):
    """A prompt with one answer and whether it was liked.

    `messages` (the last turn is the answer), or `prompt` and `completion`; with `label` (`kto_tag`) true or false.
    """

    name: ClassVar[str] = "unpaired"
    precedence: ClassVar[int] = 65
    makes: ClassVar[type[Unpaired]] = Unpaired
    columns_help: ClassVar[str] = "messages, or prompt and completion, with label (true or false)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"messages": [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "Hello."}], "label": True},
        {"prompt": "Greet.", "completion": "What?", "label": False},
    )
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with one answer and its label."""
        answered = first_of(TURNS, columns) is not None or "completion" in columns
        return answered and first_of(LABELS, columns) is not None

    def format(self, row: Mapping[str, Any]) -> Unpaired:
        """The judged answer of a row."""
        column = first_of(LABELS, row)
        if column is None or not isinstance(row[column], bool):
            got = "none" if column is None else repr(row[column])
            raise ValueError(f"expected '{column or LABELS[0]}' to be true or false, got {got}")
        prompt, read = _prompt(row)
        if "completion" in row:
            completion = _answer(row, "completion")
            read.add("completion")
        else:
            if not prompt or prompt[-1].role != "assistant":
                raise ValueError(
                    "expected a column 'completion', or 'messages' that end with the assistant's turn, got neither"
                )
            prompt, completion = prompt[:-1], prompt[-1:]
        if not prompt:
            raise ValueError("expected a column with the prompt (prompt, instruction, question, messages), got none")
        meta = {key: value for key, value in row.items() if key not in {*read, column}}
        return Unpaired(prompt, completion, row[column], meta)


def _is_whole(turns: tuple[Message, ...]) -> bool:
    """Whether the user says something before the first answer."""
    roles = [turn.role for turn in turns]
    return "user" in roles[: roles.index("assistant") if "assistant" in roles else None]


def _repeats(turns: tuple[Message, ...], said: tuple[Message, ...]) -> bool:
    """Whether turns begin with what the user said first."""
    one, other = (next((turn for turn in some if turn.role == "user"), None) for some in (turns, said))
    return one is not None and other is not None and one.content.strip() == other.content.strip()


def _stands_in(turn: Message, turns: tuple[Message, ...]) -> bool:
    return turn.role == "system" or any((turn.role, turn.content.strip()) == (t.role, t.content.strip()) for t in turns)


def _prompt(row: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, set[str]]:
    """The turns before the answers, and the columns that were read; None where a row has no prompt of its own."""
    system = text_of(row, "system", optional=True)
    turns = (Message("system", system),) if system else ()
    if (column := first_of(TURNS, row)) is not None:
        return (*turns, *turns_of(row[column], column)), {column, "system"}
    if (column := first_of(QUESTIONS, row)) is None:
        return None, {"system"}
    if isinstance(row[column], list):
        return (*turns, *turns_of(row[column], column)), {column, "system"}
    user, read = asked(row)
    return (*turns, user), read | {"system"}


def _answer(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """An answer that is a text, a turn or a list of turns."""
    value = row[column]
    if isinstance(value, Mapping):
        return (turn_of(value, column, 1),)
    if isinstance(value, list):
        return tuple(turns_of(value, column))
    return (Message("assistant", text_of(row, column, answer=True)),)
