"""The contract of a task: from the user's row to an example, and which metrics judge the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.types import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from lightning_ft.types import Example


@dataclass(frozen=True)
class Task(ABC):
    """A kind of data and how it is judged.

    Subclasses are frozen dataclasses: every field is an option (`--task.system "..."`).
    """

    name: ClassVar[str]
    """What users type, case-insensitively."""
    precedence: ClassVar[int] = 0
    """Where several tasks match a file's columns, the highest wins; equal ones are an error that names both."""
    automatic: ClassVar[bool] = True
    """Whether `--task auto` may take it; False: `matches` is so of no row, and users name the task."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of the metrics that judge what the model answers, or which of two answers it holds likelier."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Everyday options (`epochs`, `max_length` ...) that this task sets where the user does not."""
    makes: ClassVar[type[Example] | tuple[type[Example], ...]] = Conversation
    """What `format` returns, or may: `--task auto` looks among the tasks whose examples the objective trains on."""
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Two or three rows as users write them; the test kit formats them."""
    columns_help: ClassVar[str] = ""
    """The columns that the task reads, for messages: `instruction, input (optional), output`."""

    @classmethod
    def kinds(cls) -> tuple[type[Example], ...]:
        """The types in `makes`."""
        return cls.makes if isinstance(cls.makes, tuple) else (cls.makes,)

    @classmethod
    @abstractmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Whether rows with these columns are of this task (`--task auto`)."""

    @classmethod
    def recognizes(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row holds what the task reads, for layouts within a column that tasks of lower precedence read too.

        A task that says so itself is taken by `--task auto` only where this is true of at least half of the first 200 rows.
        False, never an error, for a row that lacks the column or holds another type in it.
        """
        return True

    @property
    def demonstrations(self) -> int:
        """How many training rows `format` shows before each row: they come with it, as a list under the key `shots`."""
        return 0

    @property
    def demonstration_file(self) -> str | None:
        """A file to take them from; None: the training rows of the run."""
        return None

    def candidates(self, examples: Sequence[Example]) -> Sequence[str]:
        """All answers that are allowed, as in a choice among classes; none: any text is.

        Args:
            examples: Held-out rows, from which the classes may be read off.
        """
        return ()

    def new_tokens(self, examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
        """Texts that become tokens of their own before anything is encoded, in the order of their ids; none: no new ones.

        Args:
            examples: Of the training rows. They are read from the files, formatted and split when the first is asked for.
            tokenizer: As it is; it is left so.

        Raises:
            UsageError: the task's options ask for tokens that there are not, or that are there already.
        """
        return ()

    def unfold(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The rows that a row of the file stands for: as a rule itself, for a tree of replies each of its conversations.

        All of them go into the same split, and the ledger counts them; `format` gets them one by one.

        Raises:
            ValueError: as `format`; also where a row stands for none.
        """
        return (row,)

    @abstractmethod
    def format(self, row: Mapping[str, Any]) -> Example:
        """The example that a row stands for.

        Raises:
            ValueError: the row lacks something or holds a wrong type; the message says what was expected and what
                came. File and line are added by the caller.
        """
