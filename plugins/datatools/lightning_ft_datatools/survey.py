"""Everything that can be known about data files: the checks, one after the other, and the numbers beside them."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import DataError, RefusedRowError, UsageError
from lightning_ft_datatools.checks import copies, labels, lengths, meaning, style, text
from lightning_ft_datatools.findings import KINDS, Finding, Report
from lightning_ft_datatools.progress import Progress
from lightning_ft_datatools.reading import listed, texts_of
from lightning_ft_datatools.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lightning_ft.run.texts import Texts
    from lightning_ft.task import Task
    from lightning_ft.types import Row
    from lightning_ft_datatools.capacity import Capacity
    from lightning_ft_datatools.reading import Names

STEPS = 7
"""Steps of a survey, for the bar."""


CODE = frozenset({
    "code", "canonical_solution", "solution", "test", "tests", "test_list", "test_setup_code", "challenge_test_list",
})  # fmt: skip
"""Columns of code, in which every blank may be a meaning."""


@dataclass(frozen=True)
class Options:
    """What the caller of `check` may choose."""

    task: str | None = None
    model: str = "embedded"
    template: str = "auto"
    max_length: int | None = None
    against: Sequence[str] = ()
    """Benchmark files."""
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Survey:
    """Rows that could be read, and what was found so far."""

    files: Sequence[Path]
    task: Task | None
    """None where no row could be read."""
    records: list[Record]
    rows: list[Row]
    """All rows that could be read, also those that the task refuses."""
    findings: list[Finding]
    rows_read: int
    moved: frozenset[str]
    """Rows (`file:line`) whose split column says since what their file is named after."""
    code: frozenset[str] = CODE
    """Columns of code, as they are called here."""

    def add(self, found: Iterable[tuple[str, Record, str] | tuple[str, Record, str, str]]) -> None:
        """Take over what a check yields."""
        for kind, record, detail, *other in found:
            row = record.row
            self.findings.append(Finding(kind, row.source, row.line, detail, row.part, *other))


def read(names: Sequence[str], options: Options) -> Survey:
    """The records of files; what cannot be read or formatted is a finding.

    Raises:
        DataError: a file is missing, or holds no rows at all.
        UsageError: an unknown task or option.
    """
    from lightning_ft.data.sources import expand

    files = expand(names)
    found = [rows_of(path) for path in files]
    rows, findings = ([item for part in parts for item in part] for parts in zip(*found, strict=True))
    return _surveyed(files, rows, findings, options)


def _surveyed(files: Sequence[Path], rows: Sequence[Row], findings: list[Finding], options: Options) -> Survey:
    """The records of rows that were read, and the findings with those that were found while they were; raises as `read`."""
    from lightning_ft.data.rename import Renaming
    from lightning_ft.data.sources import splits_by_name
    from lightning_ft_datatools.reading import chosen, with_splits

    renaming = Renaming(options.columns)
    rows = [renaming(row) for row in rows]
    if not rows and not any(finding.line for finding in findings):
        place, said = findings[0].row, findings[0].detail
        raise DataError(f"{said}." if said.startswith(findings[0].source) else f"{place}: {said}.")
    if rows:
        renaming.check(str(files[0]))
    task = chosen(options.task, rows) if rows or options.task not in (None, "auto") else None
    named = {str(path): split for path, split in splits_by_name(files).items()}
    placed = with_splits(rows, named)
    moved = frozenset(new.id for old, new in zip(rows, placed, strict=True) if new is not old)
    code = CODE | {new for new, old in options.columns.items() if not CODE.isdisjoint(old.split("|"))}
    survey = Survey(files, task, [], placed, findings, len(rows) + len(findings), moved, code)
    for row in placed:
        try:
            survey.records += records_of(survey, [row])
        except UsageError:
            raise
        except ValueError as error:
            kind = error.kind if isinstance(error, RefusedRowError) else "format"
            findings.append(Finding(kind, row.source, row.line, str(error)))
    return survey


def rows_of(path: Path) -> tuple[list[Row], list[Finding]]:
    """The rows of a file and a finding for each that is none."""
    from lightning_ft.data.badrows import BadRows
    from lightning_ft_datatools.reading import whole_rows

    bad, findings = BadRows("skip"), []
    rows: list[Row] = []
    try:
        rows.extend(whole_rows(path, bad))
    except DataError as error:
        findings.append(Finding("unreadable", str(path), 0, str(error).removeprefix(f"{path}: ").rstrip(".")))
    return rows, [*(Finding("unreadable", p.source, p.line, p.reason, raw=p.raw) for p in bad.problems), *findings]


def records_of(survey: Survey, rows: Sequence[Row]) -> list[Record]:
    """The records of rows, each with the split that the row or its file names.

    Raises:
        ValueError: the task refuses a row.
    """
    from lightning_ft.data.split import split_name
    from lightning_ft.data.unfold import examples_of

    assert survey.task is not None, "rows without a task"
    out = []
    for row in rows:
        named = row.values.get("split")
        if named is not None and split_name(named) is None:
            raise ValueError(f"expected 'split' to be train, validation or test, got {named!r}")
        split = split_name(named)
        out += [Record(own, example, split) for own, example in examples_of(survey.task, row)]
    return out


def survey(names: Sequence[str], options: Options, progress: Progress) -> tuple[Report, Survey]:
    """Read files and look at them in every way."""
    with progress.step("reading"):
        found = read(names, options)
    texts = texts_of(options.model, options.template, options.max_length)
    with _unswept():
        return _looked_at(found, options, texts, progress), found


def _looked_at(found: Survey, options: Options, texts: Texts, progress: Progress) -> Report:
    records = found.records
    with progress.step("tokens"):
        sizes = lengths.sizes(texts.encoder, records)
        found.add(lengths.check_lengths(records, sizes))
    with progress.step("rows"):
        for one_row in (text.check_turns, text.check_empty, text.check_answers, text.check_encoding, text.check_secrets):
            found.add(one_row(records))
        found.add(text.check_answers_differ(records))
        found.add(text.marker_check(_special(texts.tokenizer))(records))
        found.add(style.check_style(records))
    with progress.step("duplicates"):
        found.add(copies.check_copies(records))
        found.add(copies.check_conflicts(records))
        found.add(copies.check_splits(records))
        for name in options.against:
            found.add(copies.check_benchmark(records, _questions(name)))
    with progress.step("labels"):
        found.add(labels.check_labels(records))
    with progress.step("languages"):
        spoken = meaning.languages(records)
        found.add(meaning.check_languages(records, spoken))
    with progress.step("neighbours"):
        space = meaning.Space.of(records)
        found.add(meaning.check_topic(space))
        varied = meaning.diversity(records, space)
    return _report(options, found, lengths.lengths(sizes, texts.encoder.max_length, texts.positions), spoken, varied)


@contextlib.contextmanager
def _unswept() -> Iterator[None]:
    """Within it the garbage collector passes over what is there already, which a tenth of the time would go to."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def check(
    names: Names, *, task: str | None = None, model: str = "embedded", template: str = "auto",
    max_length: int | None = None, against: Sequence[str] = (), columns: Mapping[str, str] | None = None,
) -> Report:  # fmt: skip
    """What `lightning-ft data check` reports.

    Args:
        names: files, globs and folders.
        task: by name, or None to let the columns decide.
        model: whose tokenizer.
        template: chat template.
        max_length: tokens at which rows are cut; None: the model's context.
        against: benchmark files.
        columns: as for `fit`.

    Raises:
        DataError: a file is missing, or holds no rows at all.
        UsageError: an unknown task, model or option.
    """
    files = listed(names)
    options = Options(task, model, template, max_length, against, columns or {})
    with Progress(STEPS).running() as progress:
        return survey(files, options, progress)[0]


def _special(tokenizer: Any) -> list[str]:
    tokens = {str(token) for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens)}
    return [token for token in tokens if len(token.strip()) > 1]


def _questions(name: str) -> list[tuple[str, str]]:
    """Question and place of each row of a benchmark; of rows that no task reads (without an answer), their longest text."""
    from lightning_ft.data.sources import expand
    from lightning_ft_datatools.records import strings

    files, found = expand([name]), list[tuple[str, str]]()
    rows = [row for path in files for row in rows_of(path)[0]]
    read_by_task: set[tuple[str, int]] = set()
    with contextlib.suppress(DataError):
        for record in _surveyed(files, rows, [], Options()).records if rows else ():
            read_by_task.add((record.row.source, record.row.line))
            found.append((record.question or record.answer, record.id))
    left = [row for row in rows if (row.source, row.line) not in read_by_task]
    return found + [(max(strings(dict(row.values)), key=len, default=""), row.id) for row in left]


def _report(
    options: Options, survey: Survey, tokens: Mapping[str, Any], spoken: Sequence[str | None],
    varied: Mapping[str, float],
) -> Report:  # fmt: skip
    from lightning_ft_datatools.advice import advice, remarks
    from lightning_ft_datatools.records import shares

    records, order = survey.records, list(KINDS)
    position = {str(path): i for i, path in enumerate(survey.files)}
    issues = sorted(survey.findings, key=lambda f: (order.index(f.kind), position.get(f.source, 0), f.line, f.part))
    known = Counter(language for language in spoken if language)
    counted = meaning.balance(records)
    count = max(1, len(records))
    task = None if survey.task is None else survey.task.name
    return Report(
        files=[str(path) for path in survey.files], task=task, model=options.model,
        total_examples=len(records), rows_read=survey.rows_read, issues=issues, lengths=tokens,
        avg_prompt_length=sum(len(record.prompt) for record in records) / count,
        avg_response_length=sum(len(record.answer) for record in records) / count,
        balance=counted, languages=shares(known), diversity=varied,
        remarks=remarks(counted, varied, tokens), advice=advice(len(records), tokens, issues, _capacity(options.model)),
    )  # fmt: skip


def _capacity(model: str) -> Capacity | None:
    """Of a model that lies on this machine."""
    from lightning_ft.loading import locate
    from lightning_ft_datatools.capacity import capacity_of

    folder = Path(locate(model).base)
    return capacity_of(folder) if folder.is_dir() else None
