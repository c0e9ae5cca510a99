"""Train, validation and test without a row in one that stands, exactly or nearly, in another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_ft.cli.tables import table
from lightning_ft.data.split import GROUP_COLUMNS, SPLITS, prompt_key, split_rows
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lightning_ft.data.split import Split
    from lightning_ft.types import Row
    from lightning_ft_datatools.reading import Names
    from lightning_ft_datatools.records import Record

SHARES = (0.8, 0.2)
"""Training and validation, unless said otherwise."""
_LOOKED_FOR = 0.3  # likeness of pairs of which the largest across splits is told


class Parts:
    """Rows with their split, and the proof that the splits have nothing in common."""

    def __init__(
        self, read: Sequence[Row], records: Sequence[Record], splits: Sequence[Split], closest: tuple[float, str, str] | None
    ) -> None:
        self.read = read
        """The rows as their files have them, each of which may stand for several records."""
        self.records = records
        self.splits = splits
        self.closest = closest
        """Largest likeness of two prompts in different splits, and the two rows; None: no two are alike at all."""

    def rows(self, split: Split) -> list[Mapping[str, Any]]:
        """The rows of a split, each once and whole, in the order of the file."""
        found = {(r.row.source, r.row.line) for r, own in zip(self.records, self.splits, strict=True) if own == split}
        return [dict(row.values) for row in self.read if (row.source, row.line) in found]

    def check(self, folder: Path) -> None:
        """Refuse a folder with the file of a split that has no rows now: `fit` would take those of another split for them.

        Raises:
            UsageError: there is one.
        """
        stale = [folder / f"{name}.jsonl" for name in SPLITS if name not in self.splits and (folder / f"{name}.jsonl").exists()]
        if stale:
            raise UsageError(
                f"Expected --output to be a folder without '{stale[0]}', which has no rows now and which `fit` would read; "
                "take it out, or name another folder."
            )

    def write(self, folder: Path) -> str:
        """Write `train.jsonl` and the others; comes back with what to print. Errors as of `check`."""
        from lightning_ft_datatools.output import write_rows

        self.check(folder)
        folder.mkdir(parents=True, exist_ok=True)
        cells = []
        for name in SPLITS:
            rows = self.rows(name)
            if rows:
                write_rows(folder / f"{name}.jsonl", rows)
                cells.append((name, f"{len(rows):,}", str(folder / f"{name}.jsonl")))
        return f"{table(('part', 'rows', 'file'), cells, numbers=frozenset({1}))}\n\nproof: {self.proof}"

    @property
    def proof(self) -> str:
        """What the two most alike prompts of different parts have in common."""
        if not self.closest:
            return "no two prompts in different parts are alike"
        share, one, other = self.closest
        return f"the most alike prompts in different parts share {100 * share:.0f} % of their words: {one} and {other}"


def split(
    names: Names, shares: Sequence[float] = SHARES, *, seed: int = 0, stratify: str | None = None,
    group: Sequence[str] = (), task: str | None = None, columns: Mapping[str, str] | None = None,
) -> Parts:  # fmt: skip
    """Split the rows of files as `data split` does.

    Args:
        names: files, globs and folders.
        shares: of train, validation and (optional) test.
        seed: another one gives another split.
        stratify: a column, or `class` for the class of a classification task.
        group: columns whose values hold rows together, beside those that always do.
        task: by name, or None to let the columns decide.
        columns: as for `fit`.

    Raises:
        DataError: rows cannot be read or formatted.
        UsageError: shares that are none, or a column that is not there.
    """
    from lightning_ft.data.split import split_name
    from lightning_ft_datatools.reading import read
    from lightning_ft_datatools.records import Record

    reading = read(names, task, columns or {})
    records = [Record(row, example, split_name(row.values.get("split"))) for row, example in reading.examples(reading.rows)]
    return split_records(reading.rows, records, shares, seed=seed, stratify=stratify, group=group)


def split_records(
    read: Sequence[Row], records: Sequence[Record], shares: Sequence[float], *, seed: int = 0, stratify: str | None = None,
    group: Sequence[str] = (),
) -> Parts:  # fmt: skip
    """As `split`, of rows that were read already, with the records that they stand for."""
    from lightning_ft_datatools.similar import NEAR, pairs_of_different

    for column in [*group, *([stratify] if stratify and stratify != "class" else [])]:
        if not any(column in record.row.values for record in records):
            known = ", ".join(sorted({key for record in records[:100] for key in record.row.values}))
            raise UsageError(f"Expected a column of the rows ({known}), got '{column}'; check its name.")
    strata = None
    if stratify:
        strata = [str(r.label if stratify == "class" else r.row.values.get(stratify)) for r in records]
    pairs = list(pairs_of_different([record.question or record.answer for record in records], _LOOKED_FOR))
    alike = [(i, j) for i, j, share in pairs if share >= NEAR] + _of_one_row(records)
    rows, prompts = [record.row.values for record in records], [[prompt_key(record.example)] for record in records]
    splits = split_rows(
        rows, prompts, shares, seed, ids=[r.id for r in records], alike=alike, groups=(*GROUP_COLUMNS, *group), strata=strata
    )
    across = [(share, records[i].id, records[j].id) for i, j, share in pairs if splits[i] != splits[j]]
    return Parts(read, records, splits, max(across, key=lambda found: found[0], default=None))


def _of_one_row(records: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs of examples that one row stands for."""
    first: dict[tuple[str, int], int] = {}
    return [(i, j) for j, r in enumerate(records) if (i := first.setdefault((r.row.source, r.row.line), j)) != j]
