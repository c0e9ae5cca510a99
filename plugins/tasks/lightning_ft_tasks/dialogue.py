"""Whether an answer belongs to its conversation: shared words by TF-IDF, and the order of turns."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import RowMetric
from lightning_ft.types import Conversation
from lightning_ft_tasks.answers import answer_of
from lightning_ft_tasks.words import WORDS, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_ft.types import Message, ScoredRow

SEED = 0
"""Decides which answers change places for the baseline."""


class Coherence(RowMetric):
    r"""Mean TF-IDF cosine of an answer and the turns before it (all but the system's, as one text).

    A word w has the weight tf(w) (ln((1 + n) / (1 + df(w))) + 1): its count in the text, and n texts of which df(w) have it;
    cosine is that of the weighted counts. (The smoothed idf of scikit-learn; Salton and Buckley 1988, table 1.) The n texts are
    the turns before the answers and the given answers of all rows, so that two models are measured with the same weights.
    Words are runs of letters and digits in lower case, each Han, kana and hangul character one. An answer that repeats the
    question has 1; `flow` sees that.
    """

    name: ClassVar[str] = "coherence"
    higher_is_better: bool | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.texts, self.found, self.partners = 0, Counter[str](), dict[str, str]()

    @property
    def signature(self) -> str:
        """How words are weighted."""
        return f"{WORDS}|tfidf:smooth|norm:l2|context:all_turns"

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Count the texts that have each word, and find each row another one's answer."""
        texts = [text for row in rows for text in (context_of(row), *row.references[:1])]
        self.texts, self.found = len(texts), Counter(word for text in texts for word in set(words(text)))
        order = list(range(len(rows)))
        random.Random(SEED).shuffle(order)
        behind = [*order[1:], *order[:1]]
        self.partners = {rows[i].row: rows[j].prediction or "" for i, j in zip(order, behind, strict=True) if i != j}

    def score(self, row: ScoredRow) -> float:
        """The cosine, 0 to 1.

        Raises:
            ValueError: nothing was generated.
        """
        return self.cosine(context_of(row), answer_of(row, self.name))

    def cosine(self, one: str, other: str) -> float:
        """The cosine of two texts; 0 where one has no word."""
        a, b = (self.weights(words(text)) for text in (one, other))
        norm = math.hypot(*a.values()) * math.hypot(*b.values())
        return min(1.0, sum(weight * b.get(word, 0.0) for word, weight in a.items()) / norm) if norm else 0.0

    def weights(self, said: Iterable[str]) -> Mapping[str, float]:
        """The weight of each word of a text."""
        return {
            word: count * (math.log((1 + self.texts) / (1 + self.found[word])) + 1) for word, count in Counter(said).items()
        }


class CoherenceMargin(Coherence):
    """Coherence above chance: the cosine with the own answer, minus that with the answer to another row.

    The other row is drawn once by a fixed seed among all rows. Near 0, answers could as well have been given to any other
    question, however high the coherence. A single row has no other and does not count. An answer that repeats the question
    has a high one, so that neither high nor low is better by itself.
    """

    name: ClassVar[str] = "coherence_margin"
    higher_is_better: bool | None = None

    @property
    def signature(self) -> str:
        """How words are weighted and answers change places."""
        return f"{super().signature}|shuffled:seed{SEED}"

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The difference and a one; zeros where there is no other answer."""
        own = self.score(row)
        other = self.partners.get(row.row)
        return (0.0, 0.0) if other is None else (own - self.cosine(context_of(row), other), 1.0)


class Flow(RowMetric):
    """Share of conversations whose turns follow each other as they should, the generated answer being the last.

    A system turn comes first or not at all, then users and assistants take turns, beginning with the user; tools answer an
    assistant, who then speaks again. No turn is empty (but for calls of tools), none says the same as an earlier one, case and
    white space aside: an answer that repeats the question, or itself, does not flow.
    """

    name: ClassVar[str] = "flow"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = ({"right": "At noon.", "wrong": "", "reference": "At noon."},)
    percent: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """When turns are the same."""
        return "same:casefold_spaces|roles:alternate"

    def score(self, row: ScoredRow) -> float:
        """1 where the conversation flows, else 0.

        Raises:
            ValueError: nothing was generated.
        """
        answer = answer_of(row, self.name)
        before = before_answer(row)
        roles = [turn.role for turn in before]
        if roles[:1] == ["system"]:
            roles = roles[1:]
        legal = roles[:1] == ["user"] and all(map(_follows, roles, [*roles[1:], "assistant"]))
        said = [" ".join(text.casefold().split()) for text in (*(turn.content for turn in before), answer)]
        calls = [bool(turn.extra.get("tool_calls")) for turn in before] + [False]
        full = all(text or call for text, call in zip(said, calls, strict=True))
        spoken = [text for text in said if text]
        return float(legal and full and len(spoken) == len(set(spoken)))


def _follows(role: str, after: str) -> bool:
    """Whether a turn of one role may stand right after another's."""
    return after in {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}.get(role, ())


def before_answer(row: ScoredRow) -> tuple[Message, ...]:
    """The turns before the last one of the assistant."""
    if not isinstance(row.example, Conversation):
        return ()
    turns = row.example.messages
    last = next((i for i in reversed(range(len(turns))) if turns[i].role == "assistant"), len(turns))
    return turns[:last]


def context_of(row: ScoredRow) -> str:
    """What was said before the answer, but for the system turn; the rendered prompt where there are no turns."""
    said = [turn.content for turn in before_answer(row) if turn.role != "system"]
    return "\n".join(said) if said else row.prompt or ""
