"""Which rows train, which validate and which are kept for the test: explicit where the data say so, else seeded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from lightning_ft.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPELLINGS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "eval": "test",
}  # fmt: skip
"""Accepted values of a `split` column, in any case."""
GROUP_COLUMNS = ("group", "conversation_id", "document_id", "customer_id")
"""Rows with an equal value in one of these columns stay in one split."""
NOT_PROMPT = frozenset({
    "split", "id", "qid", "uid", "uuid", "idx", "index", "source", "output", "response", "answer", "answers", "completion",
    "chosen", "rejected", "label", "category", "intent", "target", "solution", "weight", "score", *GROUP_COLUMNS,
})  # fmt: skip
"""Columns that do not belong to what the model is asked: two rows that differ only here are the same prompt."""
TURNS = ("messages", "conversations")


def split_name(value: Any) -> Split | None:
    """The split that a word means, or None."""
    return SPELLINGS.get(value.strip().lower()) if isinstance(value, str) else None


def split_rows(
    rows: Sequence[Mapping[str, Any]], shares: Sequence[float], seed: int, *, ids: Sequence[str] | None = None,
    alike: Sequence[tuple[int, int]] = (), groups: Sequence[str] = GROUP_COLUMNS, strata: Sequence[str] | None = None,
) -> list[Split]:  # fmt: skip
    """The split of each row.

    A `split` column wins. What it never names although its share is above 0 is split off its train rows, in the
    proportion of the shares. Without the column all rows are split by the shares.

    The seeded split moves whole groups: rows with an equal value in a column of `groups`, rows with the same prompt (all
    columns but those of `NOT_PROMPT`, without the last answer of a conversation), and pairs that are `alike`, directly or
    through other rows. Groups are taken in the order of a hash of seed and content, so the result depends neither on the
    order of the rows nor on the process. A split gets whole groups until it has its share of rows, of each stratum if
    there are some; each share above 0 gets at least one group, train first, as long as there are groups.

    Args:
        rows: the columns of each row.
        shares: of train, validation and (optional) test.
        seed: another seed gives another split.
        ids: `file:line` of each row for messages.
        alike: numbers of rows that must not be parted.
        groups: columns whose values hold rows together.
        strata: the class of each row; every split gets its share of each.

    Raises:
        DataError: a `split` column is empty in some rows or holds an unknown word.
        UsageError: not two or three shares, or a negative one.
    """
    if len(shares) not in (2, 3) or min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(f"Expected --split to be 2 or 3 shares of at least 0, as [0.8,0.1,0.1]; got {list(shares)}.")
    wanted = {name: share for name, share in zip(SPLITS, shares, strict=False) if share > 0}
    if all(row.get("split") is None for row in rows):
        return _seeded(rows, wanted, seed, _groups(rows, groups, alike), strata)
    given = [_explicit(row, ids[i] if ids else f"row {i + 1}") for i, row in enumerate(rows)]
    open_shares = {name: share for name, share in wanted.items() if name == "train" or name not in given}
    train = [i for i, name in enumerate(given) if name == "train"]
    if train and "train" in wanted and len(open_shares) > 1:
        place = {i: n for n, i in enumerate(train)}
        inner = [(place[i], place[j]) for i, j in alike if i in place and j in place]
        part = [rows[i] for i in train]
        own = None if strata is None else [strata[i] for i in train]
        for i, name in zip(train, _seeded(part, open_shares, seed, _groups(part, groups, inner), own), strict=True):
            given[i] = name
    return given


def _explicit(row: Mapping[str, Any], place: str) -> Split:
    value = row.get("split")
    name = split_name(value)
    if name is None:
        got = "nothing, while other rows have one" if value is None else repr(value)
        raise DataError(
            f"{place}: expected 'split' to be one of {', '.join(SPELLINGS)}, got {got}; fill it in every row, or rename the"
            " column to have the rows split by --split."
        )
    return name


def _seeded(
    rows: Sequence[Mapping[str, Any]], shares: Mapping[Split, float], seed: int, groups: Mapping[str, list[int]],
    strata: Sequence[str] | None,
) -> list[Split]:  # fmt: skip
    """Whole groups in hash order, each to the split that lacks most rows of the group's strata."""
    total = sum(shares.values())
    classes = strata or ["" for _ in rows]
    sizes = Counter(classes)
    missing = {name: {c: size * share / total for c, size in sizes.items()} for name, share in shares.items()}
    smallest = max(1.0, min((sum(lacks.values()) for lacks in missing.values()), default=1.0))

    def rank(item: tuple[str, list[int]]) -> tuple[int, str]:
        # A group that would overfill the smallest split goes first, while train still has room for it.
        size = len(item[1])
        return (-size if size > smallest else 0, _hash(f"{seed}:{item[0]}"))

    result: list[Split] = ["train"] * len(rows)
    empty = list(shares)
    ordered = sorted(groups.items(), key=rank)
    for position, (_, members) in enumerate(ordered):
        must_fill = len(ordered) - position <= len(empty)
        own = Counter(classes[i] for i in members)
        name = empty[0] if must_fill else _neediest(missing, own)
        if name in empty:
            empty.remove(name)
        for c, count in own.items():
            missing[name][c] -= count
        for i in members:
            result[i] = name
    return result


def _neediest(missing: Mapping[Split, Mapping[str, float]], own: Mapping[str, int]) -> Split:
    """The split that lacks most rows of these classes, then most rows at all."""

    def need(name: Split) -> tuple[float, float]:
        return sum(count * missing[name][c] for c, count in own.items()), sum(missing[name].values())

    return max(missing, key=need)


def _groups(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], alike: Sequence[tuple[int, int]]
) -> dict[str, list[int]]:
    """Rows that must stay together, under a name that does not depend on their order."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def join(first: str, second: str) -> None:
        one, other = sorted((root(first), root(second)))
        parent[other] = one  # the smallest hash names the group, whatever came first

    prompts = [_prompt_key(row) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        for column in columns:
            if row.get(column) not in (None, ""):
                join(prompt, _hash(f"{column}={_canonical(row[column])}"))
    for i, j in alike:
        join(prompts[i], prompts[j])
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(root(prompt), []).append(i)
    return groups


def _prompt_key(row: Mapping[str, Any]) -> str:
    """Hash of what the model is asked; of the whole row where nothing of that kind is known."""
    prompt = {key: value for key, value in row.items() if key not in NOT_PROMPT and value is not None}
    for column in TURNS:
        if isinstance(prompt.get(column), list) and len(prompt[column]) > 1:
            prompt[column] = prompt[column][:-1]
    if not prompt:
        prompt = {key: value for key, value in row.items() if key != "split"}
    return _hash(_canonical(prompt))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
