"""From raw files to what can be trained on, in one call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.data.split import Split
    from lightning_ft_datatools.findings import Report
    from lightning_ft_datatools.reading import Names
    from lightning_ft_datatools.splitting import Parts


@dataclass(frozen=True)
class PreparedFiles:
    """What `prepare` wrote."""

    folder: Path
    report: Report
    """Of the rows as they came."""
    rows: Mapping[str, int]
    """Of each part."""
    removed: int
    changed: int
    proof: str


def prepare(
    names: Names, output: str | Path, *, shares: Sequence[float] = (0.8, 0.2), seed: int = 0,
    stratify: str | None = None, group: Sequence[str] = (), task: str | None = None, model: str = "embedded",
    template: str = "auto", max_length: int | None = None, against: Sequence[str] = (), lower: bool = False,
    columns: Mapping[str, str] | None = None,
) -> PreparedFiles:  # fmt: skip
    """Read, check, clean, split, shuffle and write.

    The folder gets `train.jsonl` and the other parts (shuffled), `report.html` and `report.json` of the rows as they came,
    `data.quarantine.jsonl` and `data.changes.jsonl`. Every row read is in a part or in the quarantine.

    Args:
        names: files, globs and folders.
        output: a folder.
        shares: of train, validation and (optional) test.
        seed: of split and order.
        stratify: see `split`.
        group: see `split`.
        task: by name, or None to let the columns decide.
        model: whose tokenizer.
        template: chat template.
        max_length: tokens at which rows are cut.
        against: benchmark files.
        lower: put all texts in lower case.
        columns: as for `fit`.

    Raises:
        DataError: nothing can be read, or nothing is left.
        UsageError: an unknown task, model or option.
    """
    import json

    from lightning_ft.errors import DataError, UsageError
    from lightning_ft_datatools.fix import clean
    from lightning_ft_datatools.output import write, write_rows
    from lightning_ft_datatools.page import page
    from lightning_ft_datatools.progress import Progress
    from lightning_ft_datatools.reading import listed
    from lightning_ft_datatools.splitting import split_records
    from lightning_ft_datatools.survey import STEPS, Options, records_of, survey

    files = listed(names)
    options = Options(task, model, template, max_length, against, columns or {})
    with Progress(STEPS).running() as progress:
        report, found = survey(files, options, progress)
    cleaned = clean(found, report, lower=lower)
    if not cleaned.kept:
        raise DataError(f"{files[0]}: expected rows that are left after cleaning, got none; see `lightning-ft data check`.")
    rows = [dataclasses.replace(row, values=values) for row, values in cleaned.kept]
    parts = split_records(rows, records_of(found, rows), shares, seed=seed, stratify=stratify, group=group)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"Expected the name of a folder for what is prepared, got the file '{folder}'; name another one.")
    parts.check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    for name in _parts(parts):
        own = parts.rows(name)
        write_rows(folder / f"{name}.jsonl", [own[i] for i in draw.permutation(len(own)).tolist()])
        counts[name] = len(own)
    cleaned.write(folder / "data.jsonl")
    write(folder / "report.html", page(report))
    write(folder / "report.json", json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return PreparedFiles(folder, report, counts, len(cleaned.taken), cleaned.changed, parts.proof)


def _parts(parts: Parts) -> list[Split]:
    from lightning_ft.data.split import SPLITS

    return [name for name in SPLITS if name in parts.splits]
