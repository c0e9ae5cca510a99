"""Instructions with answers: the task of most public fine-tuning files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_ft.data.shots import SHOTS
from lightning_ft.errors import RefusedRowError, UsageError, json_name
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

QUESTIONS = ("instruction", "prompt", "question", "query", "input")
"""Columns that may hold what is asked, first match wins."""
CONTEXTS = ("input", "context")
"""Columns that may hold what the question is about."""
ANSWERS = ("output", "response", "completion", "answer")
"""Columns that may hold the answer to learn, first match wins."""


@dataclass(frozen=True)
class Instruct(Task):
    """A question, optionally with an input, and its answer: one user turn, one trained assistant turn.

    The user turn's text is the instruction, and two line breaks and the input below it where there is one. The two
    parts are also in the message's `extra` as `instruction` and `input`, for templates that set them apart (Alpaca).
    A `system` column goes before the option of that name. Further columns are kept in `meta`.
    """

    name: ClassVar[str] = "instruct"
    precedence: ClassVar[int] = 10
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "rougeL")
    columns_help: ClassVar[str] = (
        "instruction (prompt, question, query, text), input or context (optional), output (response, completion, answer)"
    )
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"instruction": "Name the capital.", "input": "France", "output": "Paris"},
        {"instruction": "Name the capital.", "context": "", "response": "Paris", "category": "closed_qa"},
        {"prompt": "Name the capital of France.", "completion": "Paris"},
        {"question": "What is the capital of France?", "answer": "Paris"},
        {"query": "capital of France", "answer": "Paris", "system": "Answer in one word."},
        {"text": "The capital of France is", "answer": "Paris", "id": 1},
    )
    """Rows as the task reads them."""

    system: str | None = None
    """System turn put before every row that has no `system` column; None: none."""
    question_column: str | None = None
    """Column that holds the question; None: the first of instruction, prompt, question, query, input, else text."""
    context_column: str | None = None
    """Column that holds what the question is about, may be empty; None: input or context where there is one."""
    answer_column: str | None = None
    """Column that holds the answer; None: the first of output, response, completion, answer."""
    shots: int = 0
    """Training rows shown before each row, drawn by the seed, never the row itself; nothing of them is trained."""
    shots_as: Literal["turns", "text"] = "turns"
    """turns: as further turns of the conversation; text: in the user turn, as `Question: ...` and `Answer: ...`."""
    shots_from: str | None = None
    """File whose rows are shown, for `evaluate` say; None: the training rows."""

    def __post_init__(self) -> None:
        if self.shots < 0 or self.shots_as not in ("turns", "text"):
            got = f"shots={self.shots}, shots_as='{self.shots_as}'"
            raise UsageError(f"Expected --task.shots of at least 0 and --task.shots_as turns or text; got {got}.")

    @property
    def demonstrations(self) -> int:
        """The option `shots`."""
        return self.shots

    @property
    def demonstration_file(self) -> str | None:
        """The option `shots_from`."""
        return self.shots_from

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with a question's and an answer's column and no conversation."""
        return first_of((*QUESTIONS, "text"), columns) is not None and first_of(ANSWERS, columns) is not None

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation of (system,) (shots,) user and assistant."""
        user, answer, read = self._pair(row)
        system = text_of(row, "system", optional=True) or self.system
        turns: tuple[Message, ...] = (Message("system", system),) if system else ()
        shown = [self._shown(shot) for shot in row.get(SHOTS, ())] if self.shots else []  # else it is the user's column
        if self.shots_as == "text" and shown:
            user = _in_one(shown, user)
        else:
            turns += tuple(turn for asks, says in shown for turn in (asks, Message("assistant", says, weight=0.0)))
        read |= {"system", SHOTS} if self.shots else {"system"}
        return Conversation((*turns, user, Message("assistant", answer)), meta={k: v for k, v in row.items() if k not in read})

    def _shown(self, shot: Mapping[str, Any]) -> tuple[Message, str]:
        """What is asked and what is answered in a row that is shown, as a row that trains has it."""
        turns = self.format({key: value for key, value in shot.items() if key != SHOTS}).messages
        return next(turn for turn in reversed(turns) if turn.role == "user"), turns[-1].content

    def _pair(self, row: Mapping[str, Any]) -> tuple[Message, str, set[str]]:
        """The user turn, the answer, and the columns that were read."""
        question = self.question_column
        if question is None and "text" in row and first_of(QUESTIONS, row) is None:
            question = "text"  # beside an answer it is what the answer is about
        user, read = asked(row, question, self.context_column)
        column = self.answer_column or first_of(ANSWERS, row)
        if column is None:
            raise ValueError(f"expected a column '{ANSWERS[0]}' (or {', '.join(ANSWERS[1:])}), got {', '.join(row) or 'none'}")
        return user, text_of(row, column, answer=True), read | {column}


def _in_one(shown: Sequence[tuple[Message, str]], user: Message) -> Message:
    """The user turn with the shown questions and answers above it."""
    blocks = [f"Question: {asks.content}\nAnswer: {says}" for asks, says in shown]
    content = "\n\n".join([*blocks, f"Question: {user.content}\nAnswer:"])
    return Message("user", content, extra={"instruction": content, "input": ""})


def asked(
    row: Mapping[str, Any], question_column: str | None = None, context_column: str | None = None
) -> tuple[Message, set[str]]:
    """The user turn of a row with a question and, where there is one, what it is about; and the columns that were read.

    Raises:
        ValueError: there is no question, or a column holds no text.
    """
    column = question_column or first_of(QUESTIONS, row)
    if column is None or (column == "input" and not question_column and not str(row[column] or "").strip()):
        raise ValueError(f"expected a column '{QUESTIONS[0]}' (or {', '.join(QUESTIONS[1:])}), got {', '.join(row) or 'none'}")
    if context_column is None:
        there = [name for name in CONTEXTS if name != column and name in row]
        context_column = next((name for name in there if str(row[name] or "").strip()), there[0] if there else None)
    question = text_of(row, column)
    context = text_of(row, context_column, optional=True) if context_column else ""
    content = f"{question}\n\n{context}" if context else question
    read = {column, *([context_column] if context_column else [])}
    return Message("user", content, extra={"instruction": question, "input": context}), read


def text_of(row: Mapping[str, Any], column: str, *, optional: bool = False, answer: bool = False) -> str:
    """The text in a column.

    Args:
        row: its columns.
        column: one of them.
        optional: missing, null and blank are an empty text.
        answer: the model is to say it; else it is asked.

    Raises:
        ValueError: the column is missing, holds no text, or (unless optional) only white space.
    """
    value = row.get(column)
    if optional and value is None:
        return ""
    if column not in row:
        raise ValueError(f"expected a column '{column}', got {', '.join(row) or 'none'}")
    if not isinstance(value, str):
        raise ValueError(f"expected '{column}' to be text, got {json_name(value)}")
    if value.strip():
        return value
    if not optional:
        raise RefusedRowError(
            f"expected '{column}' to hold text, got {'white space' if value else 'an empty one'}",
            "empty_answer" if answer else "empty_prompt",
        )
    return ""


def first_of(names: Sequence[str], columns: Container[str]) -> str | None:
    """The first of the names that is a column."""
    return next((name for name in names if name in columns), None)
