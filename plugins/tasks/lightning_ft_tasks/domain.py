"""The texts of a field: raw ones, and questions with answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.task import Task
from lightning_ft.types import Conversation, Text
from lightning_ft_tasks.instruct import ANSWERS, QUESTIONS, Instruct, first_of, text_of
from lightning_ft_tasks.new_words import asked_for, split_words, words_of_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from lightning_ft.types import Example

RAW = ("text", "content", "document", "body")
"""Columns that may hold a raw text, first match wins."""
LABELS = frozenset({"label", "category", "intent"})
"""Columns that make a row with a text one of another task."""
BESIDE = frozenset({
    "author", "authors", "date", "file", "group", "id", "idx", "index", "journal", "lang", "language", "license", "meta",
    "metadata", "name", "path", "source", "split", "subject", "task", "timestamp", "title", "topic", "uid", "url", "uuid",
    "year",
})  # fmt: skip
"""What may stand beside `content`, `document` or `body`, words that files of any kind use, for `--task auto` to take it."""


@dataclass(frozen=True)
class Domain(Task):
    """Raw text, of which every token is trained, or a question with an answer, of which the answer is.

    A row with a question's or an answer's column is read as task `instruct` reads it, every other one is raw text. A file
    should hold rows of one kind. Further columns are kept in `meta`.
    """

    name: ClassVar[str] = "domain"
    precedence: ClassVar[int] = -20
    makes: ClassVar[tuple[type[Example], ...]] = (Text, Conversation)
    metrics: ClassVar[tuple[str, ...]] = ("bits_per_byte", "vocabulary_coverage", "rougeL")
    columns_help: ClassVar[str] = "text, content, document or body; or question and answer, as instruct"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"text": "Myocarditis is an inflammation of the heart muscle."},
        {"document": "The appeal is dismissed.", "title": "Judgment", "id": 4},
        {"question": "What is myocarditis?", "answer": "An inflammation of the heart muscle.", "source": "book"},
    )
    """Rows as the task reads them."""

    text_column: str | None = None
    """Column that holds the raw text; None: the first of text, content, document, body."""
    question_column: str | None = None
    """Column that holds the question; None: as `instruct` finds it."""
    answer_column: str | None = None
    """Column that holds the answer; None: the first of output, response, completion, answer."""

    add_tokens: str | None = None
    """Words that become tokens of their own, whose rows of the model train with it. `auto` or `auto:N`: the N (100) most
    frequent words of the training rows that take more than 3 tokens and stand there 5 times or more, each with the space
    before it where it has one. FILE: its words, one a line, each with a space before it. None: none."""

    def __post_init__(self) -> None:
        asked_for(self.add_tokens)

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows of raw text, or with a question and an answer, which all other tasks go before.

        A column of a word that may mean anything (`content` ...) has to stand alone or beside what only describes the text: a
        summary or an answer under a name of its own would be left out of training without a word.
        """
        if Instruct.matches(columns):
            return True
        if "text" in columns:
            return not columns & LABELS
        return bool(columns & {*RAW}) and columns - {*RAW} <= BESIDE

    def new_tokens(self, examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
        """The words that `add_tokens` asks for."""
        if self.add_tokens is None:
            return ()
        number = asked_for(self.add_tokens)
        return words_of_file(Path(self.add_tokens), tokenizer) if number is None else split_words(examples, tokenizer, number)

    def format(self, row: Mapping[str, Any]) -> Example:
        """The text of a row, or its question and answer."""
        pair = {*QUESTIONS, *ANSWERS, self.question_column, self.answer_column} - {self.text_column}
        if any(row.get(column) is not None for column in pair if column):
            return Instruct(question_column=self.question_column, answer_column=self.answer_column).format(row)
        column = self.text_column or first_of(RAW, row)
        if column is None:
            raise ValueError(
                f"expected a column '{RAW[0]}' (or {', '.join(RAW[1:])}), or one with a question and one with an answer, got "
                f"{', '.join(row) or 'none'}"
            )
        return Text(text_of(row, column), {key: value for key, value in row.items() if key != column})
