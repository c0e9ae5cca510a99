"""A task from the command line or a YAML file alone: templates of the turns, and metrics by name."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import RefusedRowError, UsageError, did_you_mean, json_name
from lightning_ft.task import Task
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS = ("exact_match", "rougeL")


@dataclass(frozen=True)
class Custom(Task):
    """`--task custom` with what is said to the model and what it is to answer, both with the row's columns in braces.

    `--task.user "Translate to {language}: {text}" --task.assistant "{translation}"`. Braces hold the name of a column and
    nothing else; `{{` and `}}` are braces. Columns that no template names are kept in `meta`. Never found by `--task auto`.
    """

    name: ClassVar[str] = "custom"
    automatic: ClassVar[bool] = False
    columns_help: ClassVar[str] = "those that its templates name"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"question": "What is the capital of France?", "answer": "Paris"},
        {"question": "3 + 4?", "answer": "7", "task": "sums"},
    )
    """Rows as the task reads them with its defaults."""

    user: str = "{question}"
    """What the user says."""
    assistant: str = "{answer}"
    """What the assistant answers, and learns to."""
    system: str | None = None
    """What the system says before, columns in braces too; None: nothing."""
    references: str | None = None
    """Column with further accepted answers, a text or a list of texts; None: the assistant's turn alone."""
    metrics: tuple[str, ...] = METRICS  # type: ignore[misc]  # an option here, of the class in all other tasks
    """Metrics that judge the answers, by name."""

    def __post_init__(self) -> None:
        named: Any = self.metrics
        names = named.replace(",", " ").split() if isinstance(named, str) else named
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"Expected --task.metrics to be a list of names, got {named!r}.")
        object.__setattr__(self, "metrics", tuple(names))
        for option in ("user", "assistant", "system"):
            if (template := getattr(self, option)) is not None:
                _columns_of(template, option)
        if self.metrics != METRICS:
            from lightning_ft.registry import registry

            object.__setattr__(self, "metrics", tuple(registry().metrics[name].name for name in names))

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """No row by itself: the templates are the user's to give."""
        return False

    def format(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation of (system,) user and assistant."""
        read: set[str] = set()
        turns = []
        for role, template in (("system", self.system), ("user", self.user), ("assistant", self.assistant)):
            if template is None:
                continue
            columns = _columns_of(template, role)
            content = template.format(**{column: _text(row, column) for column in columns})
            if role != "system" and not content.strip():
                raise RefusedRowError(
                    f"expected {', '.join(map(repr, columns)) or 'the template'} to give the {role}'s turn some text, got none",
                    "empty_answer" if role == "assistant" else "empty_prompt",
                )
            read |= columns
            turns.append(Message(role, content))
        meta = {key: value for key, value in row.items() if key not in read}
        if self.references is not None:
            meta["references"] = _references(row, self.references)
        return Conversation(tuple(turns), meta=meta)


def _columns_of(template: Any, option: str) -> set[str]:
    """The columns that a template names.

    Raises:
        UsageError: it is no text, or holds more in braces than the name of a column.
    """
    try:
        if not isinstance(template, str):
            raise ValueError(f"{template!r} is no text")
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f'Expected --task.{option} to be a text with columns in braces, such as "{{question}}", got {template!r}: {error}.'
        ) from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name or name.isdigit() or set(name) & set(".[]") or spec or conversion):
            got = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UsageError(
                f"Expected the braces of --task.{option} to hold the name of a column and nothing else, got '{{{got}}}';"
                " write {{ and }} for braces in the text."
            )
    return {name for _, name, _, _ in parts if name}


def _text(row: Mapping[str, Any], column: str) -> str:
    """A column's text; a number is written as it is.

    Raises:
        ValueError: the column is missing or holds neither.
    """
    if column not in row:
        raise ValueError(
            f"expected a column '{column}', got {', '.join(row) or 'none'}.{did_you_mean(column, row)}".rstrip(".")
        )
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"expected '{column}' to be text or a number, got {json_name(value)}")
    return str(value)


def _references(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """The accepted answers in a column."""
    if column not in row:
        raise ValueError(f"expected a column '{column}', got {', '.join(row) or 'none'}")
    value = row[column]
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected '{column}' to be a text or a list of texts, got {json_name(value)}")
    return tuple(texts)
