from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from lightning_ft.builtin import Messages, RawText
from lightning_ft.data.detect import columns_of, detect_task
from lightning_ft.errors import DataError, PluginError, UsageError
from lightning_ft.registry import Entry, Table
from lightning_ft.task import Task
from lightning_ft.types import Classified, Conversation, Example, Row, Text


@dataclass(frozen=True)
class Letters(Task):
    name: ClassVar[str] = "letters"
    precedence: ClassVar[int] = 5
    columns_help: ClassVar[str] = "salutation, body"

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        return {"salutation", "body"} <= columns

    def format(self, row: Mapping[str, Any]) -> Example:
        return Text(f"{row['salutation']}\n{row['body']}")


@dataclass(frozen=True)
class Mail(Letters):
    name: ClassVar[str] = "mail"


@dataclass(frozen=True)
class Rated(Letters):
    name: ClassVar[str] = "rated"
    precedence: ClassVar[int] = 9
    makes: ClassVar[type[Example]] = Classified


@dataclass(frozen=True)
class Broken(Letters):
    name: ClassVar[str] = "broken"

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        raise KeyError("x")


@dataclass(frozen=True)
class Signed(Letters):
    """Letters that end with a name."""

    name: ClassVar[str] = "signed"
    precedence: ClassVar[int] = 6

    @classmethod
    def recognizes(cls, row: Mapping[str, Any]) -> bool:
        return str(row["body"]).endswith("Yours")


def rows(*columns: str, source: str = "a") -> list[Row]:
    """A row with these columns."""
    return [Row(dict.fromkeys(columns, "x"), source, 1)]


def table(*classes: type[Task]) -> Table:
    return Table("task", {cls.name: Entry(cls.name, cls, f"plugin_{cls.name}", "1") for cls in classes})


def test_tasks_whose_examples_the_objective_trains_on_go_first() -> None:
    """Of the higher precedence only where no other fits: then the pipeline says what the objective wants."""
    tasks, both = table(RawText, Letters, Rated), rows("salutation", "body", "text")
    assert detect_task(both, tasks).cls is Rated
    assert detect_task(both, tasks, (Classified,)).cls is Rated
    assert detect_task(both, tasks, (Conversation, Text)).cls is Letters
    assert detect_task(rows("salutation", "body"), table(Rated), (Conversation, Text)).cls is Rated


def test_the_matching_task_with_the_highest_precedence_wins() -> None:
    tasks = table(Messages, RawText, Letters)
    assert detect_task(rows("text"), tasks).cls is RawText
    assert detect_task(rows("salutation", "body", "text", "messages"), tasks).cls is Letters


def test_a_tie_names_both_tasks_and_their_plugins() -> None:
    with pytest.raises(UsageError) as caught:
        detect_task(rows("body", "salutation", source="post.csv"), table(Letters, Mail, RawText))
    assert not isinstance(caught.value, DataError)
    assert str(caught.value) == (
        "post.csv: expected one task for the columns body, salutation, got letters (plugin plugin_letters) and mail (plugin"
        " plugin_mail) of equal precedence; type --task letters or --task mail."
    )


def test_columns_of_no_task() -> None:
    with pytest.raises(DataError) as caught:
        detect_task(rows("salutatoin", "x", source="post.csv"), table(Messages, RawText, Letters))
    assert str(caught.value) == (
        "post.csv: expected the columns of a task (messages: messages; text: text; letters: salutation, body), got the columns"
        " salutatoin, x; for 'salutatoin', did you mean 'salutation'? rename the columns, or name the task with --task."
    )


def test_a_task_that_fails_is_named() -> None:
    with pytest.raises(PluginError, match=r"^Expected task 'broken' of plugin 'plugin_broken' .* got KeyError: 'x'; "):
        detect_task(rows("text"), table(Broken, RawText))


@pytest.mark.parametrize(("signed", "expected"), [(4, Signed), (2, Signed), (1, Letters), (0, Letters)])
def test_what_half_of_the_rows_look_like_decides(signed: int, expected: type[Task]) -> None:
    texts = ["Yours"] * signed + ["Bye"] * (4 - signed)
    letters = [Row({"salutation": "Dear", "body": text}, "a", i) for i, text in enumerate(texts, 1)]
    assert detect_task(letters, table(Letters, Signed)).cls is expected


def test_pieces_of_a_longer_text_are_no_rows_of_a_task_that_looks_at_them() -> None:
    letters = [Row({"salutation": "Dear", "body": body}, "a", i, section=True) for i, body in enumerate(["Yours", "Bye", "x"])]
    assert detect_task(letters, table(Letters, Signed)).cls is Letters
    with pytest.raises(
        DataError, match=r"^a: expected raw text, got what task signed reads, in pieces that may be cut anywhere; put"
    ):
        detect_task(letters[:2], table(Letters, Signed))


def test_rows_that_a_task_fails_to_look_at_are_its_fault() -> None:
    rows = [Row({"salutation": "Dear", "body": "Yours"}, "a", 1), Row({"salutation": "Dear"}, "a", 2)]
    with pytest.raises(PluginError, match=r"^Expected task 'signed' of plugin 'plugin_signed' .* got KeyError: 'body'; "):
        detect_task(rows, table(Letters, Signed))


def test_columns_are_those_that_most_rows_fill() -> None:
    rows = [Row({"text": "a", "note": None, "odd": 1 if i == 0 else None}, "f", i) for i in range(4)] + [
        Row({"note": "b"}, "f", 5)
    ]
    assert columns_of(rows) == {"text"}
    assert columns_of([]) == frozenset()
