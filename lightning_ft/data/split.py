"""Which rows train, which validate and which are kept for the test: explicit where the data say so, else seeded."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_ft.data.joined import joined
from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import Classified, Conversation, Preference, Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from lightning_ft.types import Example, Message, Unpaired

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FLAGS: dict[Split | None, str] = {None: "--data", "train": "--data", "validation": "--val_data", "test": "--test_data"}
"""By what files of a split are named; None: of a split that the rows or the seed decide."""
RULE = 3
"""Number of the rule by which rows are split, raised with every change that moves one: no run goes on by another rule."""
SPELLINGS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "eval": "test",
}  # fmt: skip
"""Accepted values of a `split` column, in any case."""
GROUP_COLUMNS = ("group", "conversation_id", "document_id", "customer_id")
"""Rows with an equal value in one of these columns stay in one split."""


def split_name(value: Any) -> Split | None:
    """The split that a word means, or None."""
    return SPELLINGS.get(value.strip().lower()) if isinstance(value, str) else None


def split_rows(
    rows: Sequence[Mapping[str, Any]], prompts: Sequence[Iterable[int]], shares: Sequence[float], seed: int, *,
    ids: Sequence[str] | None = None, alike: Sequence[tuple[int, int]] = (), groups: Sequence[str] = GROUP_COLUMNS,
    strata: Sequence[str] | None = None,
) -> list[Split]:  # fmt: skip
    """The split of each row: a `Splitter` over rows that are all at hand.

    Args:
        rows: the columns of each row.
        prompts: the `prompt_key` of each example that a row stands for.
        shares: see `Splitter.splits`.
        seed: see `Splitter.splits`.
        ids: `file:line` of each row for messages.
        alike: see `Splitter.splits`.
        groups: columns whose values hold rows together.
        strata: see `Splitter.splits`.

    Raises:
        DataError: a `split` column is empty in some rows or holds an unknown word.
        UsageError: not two or three shares, or a negative one.
    """
    splitter = Splitter(groups)
    for i, (row, keys) in enumerate(zip(rows, prompts, strict=True)):
        splitter.add(row, keys, ids[i] if ids else f"row {i + 1}")
    return splitter.splits(shares, seed, alike=alike, strata=strata)


class Splitter:
    """Keeps of each row the few bytes that decide its split, so that the rows themselves may be read one by one.

    A `split` column wins. What it never names although its share is above 0 is split off its train rows, in the
    proportion of the shares. Without the column all rows are split by the shares.

    The seeded split moves whole groups: rows with an equal value in a column of `groups`, rows that ask the same (see
    `prompt_key`), and pairs that are `alike`, directly or through other rows. Groups are taken in the order of a hash of
    seed and content, so the result depends neither on the order of the rows nor on the process. A split gets whole groups
    until it has its share of rows, of each stratum if there are some; each share above 0 gets at least one group, train
    first, as long as there are groups.

    Args:
        groups: columns whose values hold rows together.
    """

    def __init__(self, groups: Sequence[str] = GROUP_COLUMNS) -> None:
        self._columns = groups
        self._prompts = array("Q")  # hash of each row's first prompt
        self._bound = array("Q")  # row, hash, row, hash ...: further prompts, and values that hold rows together
        self._given = bytearray()  # 1 + number of the split that the row names, or 0
        self._silent: str | None = None  # the first row that names no split
        self.drawn = False
        """Whether the seed has decided the split of some rows."""

    @property
    def named(self) -> bool:
        """Whether rows name their split."""
        return any(self._given)

    def add(self, row: Mapping[str, Any], prompts: Iterable[int], place: str) -> None:
        """The next row.

        Args:
            row: its columns.
            prompts: the `prompt_key` of each example that it stands for.
            place: its `file:line`, for messages.

        Raises:
            DataError: its `split` column holds an unknown word.
        """
        value = row.get("split")
        if value is None:
            self._given.append(0)
            self._silent = self._silent or place
        else:
            name = split_name(value)
            if name is None:
                raise _unnamed(place, repr(value))
            self._given.append(1 + SPLITS.index(name))
        first, *further = prompts
        for key in (*further, *group_keys(row, self._columns)):
            self._bound.extend((len(self._prompts), key))
        self._prompts.append(first)

    def splits(
        self, shares: Sequence[float], seed: int, *, alike: Sequence[tuple[int, int]] = (), strata: Sequence[str] | None = None
    ) -> list[Split]:
        """The split of each row.

        Args:
            shares: of train, validation and (optional) test.
            seed: another seed gives another split.
            alike: numbers of rows that must not be parted.
            strata: the class of each row; every split gets its share of each.

        Raises:
            DataError: some rows have a `split` and others have none.
            UsageError: not two or three shares, or a negative one.
        """
        if len(shares) not in (2, 3) or not all(share >= 0 for share in shares) or not 0 < sum(shares) < float("inf"):
            raise UsageError(f"Expected --split to be 2 or 3 shares of at least 0, as [0.8,0.1,0.1]; got {list(shares)}.")
        wanted = {name: share for name, share in zip(SPLITS, shares, strict=False) if share > 0}
        given = np.frombuffer(bytes(self._given), np.uint8)
        if not given.any():
            self.drawn = len(wanted) > 1 and len(given) > 0
            found = _seeded(self._groups(np.arange(len(self._prompts)), alike), wanted, seed, strata)
            return [SPLITS[number] for number in found.tolist()]
        if self._silent is not None:
            raise _unnamed(self._silent, "nothing, while other rows have one")
        found = given - 1
        named = {SPLITS[number] for number in np.unique(found).tolist()}
        open_shares = {name: share for name, share in wanted.items() if name == "train" or name not in named}
        train = np.flatnonzero(found == 0)
        if len(train) and "train" in wanted and len(open_shares) > 1:
            inside = [(i, j) for i, j in alike if found[i] == found[j] == 0]
            own = None if strata is None else [strata[i] for i in train.tolist()]
            self.drawn = True
            found[train] = _seeded(self._groups(train, inside), open_shares, seed, own)
        return [SPLITS[number] for number in found.tolist()]

    def _groups(self, rows: NDArray[np.int64], alike: Sequence[tuple[int, int]]) -> NDArray[np.uint64]:
        """The name of each row's group: the smallest hash in it, whatever came first."""
        prompts = np.frombuffer(self._prompts, np.uint64)
        bound = np.frombuffer(self._bound, np.uint64).reshape(-1, 2)
        chosen = np.zeros(len(prompts), bool)
        chosen[rows] = True
        bound = bound[chosen[bound[:, 0].astype(np.int64)]]
        pairs = np.array(alike, np.int64).reshape(-1, 2)
        if not len(bound) and not len(pairs):
            return prompts[rows]
        names, numbers = np.unique(np.concatenate((prompts, bound[:, 1])), return_inverse=True)
        of_row, of_value = numbers[: len(prompts)], numbers[len(prompts) :]
        edges = np.concatenate((np.stack((of_row[bound[:, 0].astype(np.int64)], of_value), 1), of_row[pairs]))
        roots = np.frombuffer(joined(len(names), edges.tolist()), np.int64)
        return names[roots[of_row[rows]]]


def _unnamed(place: str, got: str) -> DataError:
    return DataError(
        f"{place}: expected 'split' to be one of {', '.join(SPELLINGS)}, got {got}; fill it in every row, or rename the"
        " column to have the rows split by --split."
    )


def _seeded(
    groups: NDArray[np.uint64], shares: Mapping[Split, float], seed: int, strata: Sequence[str] | None
) -> NDArray[np.uint8]:
    """Whole groups in hash order, each to the split that lacks most rows of the group's strata."""
    total = sum(shares.values())
    classes, kinds = _numbered(strata, len(groups))
    counts = np.bincount(classes, minlength=kinds).tolist()
    missing = {name: [size * share / total for size in counts] for name, share in shares.items()}
    smallest = max(1.0, min((sum(lacks) for lacks in missing.values()), default=1.0))
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # A group that would overfill the smallest split goes first, while train still has room for it.
    ordered = np.lexsort((_mixed(names, seed), -np.where(sizes > smallest, sizes, 0)))
    members, ends = np.argsort(group_of, kind="stable"), np.cumsum(sizes).tolist()
    result = np.zeros(len(groups), np.uint8)
    empty = list(shares)
    for position, group in enumerate(ordered.tolist()):
        rows = members[ends[group] - int(sizes[group]) : ends[group]]
        own = {0: len(rows)} if strata is None else Counter(classes[rows].tolist())
        must_fill = len(ordered) - position <= len(empty)
        name = empty[0] if must_fill else _neediest(missing, own)
        if name in empty:
            empty.remove(name)
        for kind, count in own.items():
            missing[name][kind] -= count
        result[rows] = SPLITS.index(name)
    return result


def _neediest(missing: Mapping[Split, Sequence[float]], own: Mapping[int, int]) -> Split:
    """The split that lacks most rows of these classes, then most rows at all."""

    def need(name: Split) -> tuple[float, float]:
        return sum(count * missing[name][kind] for kind, count in own.items()), sum(missing[name])

    return max(missing, key=need)


def _numbered(strata: Sequence[str] | None, rows: int) -> tuple[NDArray[np.int64], int]:
    """The number of each row's class, and of how many classes."""
    if strata is None or not rows:
        return np.zeros(rows, np.int64), 1
    names, numbers = np.unique(np.asarray(strata, dtype=object), return_inverse=True)
    return numbers, len(names)


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Another order of the keys for each seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = keys ^ np.uint64(content_hash(f"{seed}"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def prompt_key(example: Example) -> int:
    """Hash of what the model is asked: the turns before the last answer, the text that has a class; else the whole text.

    Other columns of the row, and how it lays out its turns, do not matter.
    """
    if isinstance(example, (Text, Classified)):
        return content_hash(example.text)
    asked, answer = _asked(example)
    if all(turn.role == "system" for turn in asked):  # many rows share it, and are asked nothing
        asked += answer
    return content_hash(_canonical([(turn.role, turn.content or turn.extra) for turn in asked]))


def _asked(example: Conversation | Preference | Unpaired) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The turns before the last answer, and those from it on; of a pair the better one."""
    if isinstance(example, Conversation):
        turns = example.messages
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        return turns[:last], turns[last:]
    return example.prompt, example.chosen if isinstance(example, Preference) else example.completion


def group_keys(row: Mapping[str, Any], columns: Sequence[str] = GROUP_COLUMNS) -> list[int]:
    """Hashes of the values that hold a row together with others."""
    return [content_hash(f"{name}={_canonical(row[name])}") for name in columns if row.get(name) not in (None, "")]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def content_hash(text: str) -> int:
    """A hash of 64 bits, the same in every process.

    That two prompts of five million share one is a matter of one in a million, and would only hold them together.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
