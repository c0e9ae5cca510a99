"""Further rows beside those of a file, with the prompt said otherwise or with slips in it, for training only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.tables import table
from lightning_ft.data.split import GROUP_COLUMNS, content_hash, split_rows
from lightning_ft.errors import DataError, UsageError
from lightning_ft_datatools.progress import Progress
from lightning_ft_datatools.prompts import Prompt
from lightning_ft_datatools.reading import listed, read
from lightning_ft_datatools.records import AUGMENTED, Record, bare, folded
from lightning_ft_datatools.rephrasing import why_refused
from lightning_ft_datatools.ways import Job, ways_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import Example, Row
    from lightning_ft_datatools.reading import Names, Reading
    from lightning_ft_datatools.ways import Way

SHARE = 0.5
"""Share of the training rows that get copies, unless said otherwise."""


@dataclass
class Account:
    """What came of one way."""

    made: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Copies that were refused, by reason."""


@dataclass(frozen=True)
class Augmented:
    """The rows of files and those made beside them."""

    rows: Sequence[dict[str, Any]]
    """Each row as it was read, and its copies behind it."""
    read: int
    accounts: Mapping[str, Account]
    """Of each way."""
    notes: Sequence[str]
    """What happened to which rows, a sentence each."""

    def summary(self) -> str:
        """What to print."""
        cells = []
        for name, own in self.accounts.items():
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in own.refused.most_common())
            cells.append((name, f"{own.made:,}", f"{own.refused.total():,}", reasons))
        counts = f"{self.read:,} rows read + {len(self.rows) - self.read:,} made = {len(self.rows):,} rows"
        accounts = table(("way", "made", "refused", "why"), cells, numbers=frozenset({1, 2}))
        return "\n".join([accounts, "", *self.notes, counts])


@dataclass(frozen=True)
class _Source:
    """A row with what decides about its copies."""

    row: Row
    prompt: Prompt
    whole: str
    """All that makes two rows the same."""
    asked: frozenset[str]
    """What the model is asked, without case and punctuation."""
    split: str


def augment(
    names: Names, *, rephrase: str | Sequence[str] = (), rephrase_model: str | None = None,
    noise: str | Sequence[str] = (), noise_rate: float | None = None, copies: int = 1, share: float = SHARE, seed: int = 0,
    max_new_tokens: int | None = None, temperature: float | None = None, task: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Augmented:  # fmt: skip
    """The rows of files and further ones for training, as `data augment` writes them.

    What the user says is changed, never an input, a system text or an answer. Validation and test rows get no copies, nor
    do rows with the prompt of one, nor rows that are copies themselves.

    Args:
        names: files, globs and folders.
        rephrase: `templates` (English), `local` (a model of this machine) or a URL of chat completions, or several.
        rephrase_model: which model, for `local` and a URL. The key of a URL is taken from `OPENAI_API_KEY`.
        noise: kinds of slips, with commas between them or as a list: `case`, `typo`, `space`; see `noise.noisy`.
        noise_rate: probability of a slip; None: 0.05.
        copies: further rows per row and way.
        share: of the training rows, which get copies.
        seed: with the content of a row it decides about the row, whatever the order of the rows.
        max_new_tokens: longest rephrasing of a model; None: what the endpoint has, 256 of a local model.
        temperature: of that model; None: 0.7.
        task: by name, or None to let the columns decide.
        columns: as for `fit`.

    Raises:
        DataError: rows cannot be read or formatted, or their splits are not clear.
        EndpointError: the endpoint fails.
        UsageError: an unknown way, options that do not fit, or rows without a prompt.
    """
    ways = ways_of(
        [rephrase] if isinstance(rephrase, str) else rephrase, rephrase_model,
        [kind for kind in noise.split(",") if kind] if isinstance(noise, str) else noise,
        rate=noise_rate, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature,
    )  # fmt: skip
    if copies < 1:
        raise UsageError(f"Expected --copies to be at least 1; got {copies}.")
    if not 0 <= share <= 1:
        raise UsageError(f"Expected --share to be from 0 to 1; got {share}.")
    files = listed(names)
    reading = read(files, task, columns or {})
    sources = _sources(reading)
    held = frozenset(asked for source in sources if source.split != "train" for asked in source.asked)
    chosen = _chosen(sources, held, share, seed, reading)
    made = {way.name: _made(way, sources, chosen, copies, seed) for way in ways}
    out = _Collector(reading, held, sources, {way.name: Account() for way in ways})
    for number, source in enumerate(sources):
        out.add(source, [(way, texts) for way in ways for texts in made[way.name].get(number, ())], seed)
    assert len(out.rows) == len(reading.rows) + sum(account.made for account in out.accounts.values())
    return Augmented(out.rows, len(reading.rows), out.accounts, _notes(sources, held, len(chosen), reading.named, out.grouped))


def _sources(reading: Reading) -> list[_Source]:
    """The rows with their splits.

    Raises:
        DataError: the task refuses a row, or its split is unknown.
    """
    rows = reading.rows
    # Without shares but training's it is only asked which split a row names, whatever is asked in it.
    prompts = [[number] for number in range(len(rows))]
    splits = split_rows([row.values for row in rows], prompts, (1, 0), 0, ids=[row.id for row in rows])
    out = []
    for row, split in zip(rows, splits, strict=True):
        mark = row.values.get(AUGMENTED)
        if mark not in (None, "") and not isinstance(mark, dict):
            raise DataError(
                f"{row.id}: expected no column '{AUGMENTED}' but what data augment writes, got {mark!r:.80}; rename it."
            )
        records = [Record(own, example) for own, example in reading.examples([row])]
        prompt = Prompt.of(row.values, [record.example for record in records])
        out.append(_Source(row, prompt, _whole(records), _asked(records), split))
    return out


def _is_copy(row: Row) -> bool:
    """Whether a row was made by an earlier call; a file with typed columns has the keys in every row."""
    mark = row.values.get(AUGMENTED)
    return isinstance(mark, dict) and bool(mark.get("from"))


def _whole(records: Sequence[Record]) -> str:
    return "\0".join(record.whole for record in records)


def _asked(records: Sequence[Record]) -> frozenset[str]:
    return frozenset(bare(record.prompt) or folded(record.prompt) for record in records)


def _free(source: _Source, held: frozenset[str]) -> bool:
    """Whether a row may have copies."""
    return source.split == "train" and held.isdisjoint(source.asked) and not _is_copy(source.row)


def _chosen(sources: Sequence[_Source], held: frozenset[str], share: float, seed: int, reading: Reading) -> list[int]:
    """Numbers of the rows that get copies: those whose hash is smallest; of equal rows the first stands for all."""
    free = [number for number, source in enumerate(sources) if _free(source, held)]
    able = {sources[number].whole: number for number in reversed(free) if sources[number].prompt.texts}
    if free and not able:
        raise UsageError(
            f"Expected rows with a user's text in a column or in turns, but the task {reading.task.name} finds none in"
            f" {sources[free[0]].row.id}; name another --task."
        )
    order = sorted(able, key=lambda whole: content_hash(f"{seed}\nshare\n{whole}"))
    return sorted(able[whole] for whole in order[: int(share * len(able) + 0.5)])


def _made(
    way: Way, sources: Sequence[_Source], chosen: Sequence[int], copies: int, seed: int
) -> dict[int, list[Sequence[str]]]:
    """For each chosen row the texts of its copies."""
    jobs = []
    for number in chosen:
        own = content_hash(f"{seed}\n{way.name}\n{sources[number].whole}")
        jobs += [(Job(sources[number].prompt.texts, own, copy), number) for copy in range(copies)]
    jobs.sort(key=lambda pair: (pair[0].seed, pair[0].copy))
    made: dict[int, list[Sequence[str]]] = {number: [] for number in chosen}
    with Progress(len(jobs)).running() as progress:
        texts = iter(way([job for job, _ in jobs]) if jobs else ())
        for _, number in jobs:
            with progress.step(way.name):
                made[number].append(next(texts))
        assert next(texts, None) is None, "a way that is read to its end closes what it opened"
    return made


class _Collector:
    """Takes rows and the copies that are worth it, and counts them."""

    def __init__(
        self, reading: Reading, held: frozenset[str], sources: Sequence[_Source], accounts: Mapping[str, Account]
    ) -> None:
        self._reading = reading
        self._held = held
        self._seen = {form for source in sources for form in (source.whole, folded(source.whole))}
        self.rows: list[dict[str, Any]] = []
        self.accounts = accounts
        self.grouped = 0

    def add(self, source: _Source, made: Sequence[tuple[Way, Sequence[str]]], seed: int) -> None:
        """A row and its copies."""
        values = dict(source.row.values)
        group = _group(source)
        copies: list[dict[str, Any]] = []
        numbers: Counter[str] = Counter()
        for way, texts in made:
            account = self.accounts[way.name]
            numbers[way.name] += 1
            found = self._row(source, way, texts)
            if isinstance(found, str):
                account.refused[found] += 1
                continue
            account.made += 1
            split = {"split": "train"} if "split" in values else {}
            mark = {"from": source.row.id, "way": way.name, **way.details, "seed": seed, "copy": numbers[way.name]}
            copies.append({**found, **group, **split, AUGMENTED: mark})
        self.grouped += bool(copies and group)
        self.rows += [values | group if copies else values, *copies]

    def _row(self, source: _Source, way: Way, texts: Sequence[str]) -> dict[str, Any] | str:
        """The further row, or why there is none."""
        old, new = source.prompt.texts, list(texts)
        reasons = []
        for number, (before, after) in enumerate(zip(old, texts, strict=True)):
            reason = way.unchanged if before == after else why_refused(before, after) if way.rephrases else None
            if reason:
                new[number] = before
                reasons.append(reason)
        if len(reasons) == len(old):
            return reasons[0]
        values = source.prompt.said(new)
        try:
            records = [Record(row, ex) for row, ex in self._reading.examples([dataclasses.replace(source.row, values=values)])]
        except DataError:
            records = []
        if not source.prompt.only_words_differ(_examples(records)):
            return "would change more than the prompt"
        if not self._held.isdisjoint(_asked(records)):
            return "asks what a validation or test row asks"
        whole = _whole(records)
        if (folded(whole) if way.rephrases else whole) in self._seen:
            return "repeats a row"
        self._seen |= {whole, folded(whole)}
        return values


def _examples(records: Sequence[Record]) -> list[Example]:
    return [record.example for record in records]


def _group(source: _Source) -> dict[str, str]:
    """The column that holds a row and its copies together; nothing where the row has such a column already."""
    if any(source.row.values.get(column) not in (None, "") for column in GROUP_COLUMNS):
        return {}
    return {GROUP_COLUMNS[0]: f"augmented-{content_hash(source.whole):016x}"}


def _notes(sources: Sequence[_Source], held: frozenset[str], chosen: int, named: Mapping[str, str], grouped: int) -> list[str]:
    train = [source for source in sources if source.split == "train"]
    copies = sum(_is_copy(source.row) for source in train)
    same = sum(not _is_copy(source.row) and not held.isdisjoint(source.asked) for source in train)
    silent = sum(_free(source, held) and not source.prompt.texts for source in train)
    out = [f"{len(train):,} training rows, of which {chosen:,} were chosen to get copies"]
    if named:
        out.append("column split: by the names of the files")
    if "split" not in sources[0].row.values:
        out.append("no column split: every row counts as a training row; split first: lightning-ft data split")
    else:
        out.append(f"{len(sources) - len(train):,} validation and test rows stay as they are")
    for count, why in (
        (same, "training rows ask what a validation or test row asks and got no copies"),
        (copies, "rows are copies of an earlier call and got none themselves"),
        (silent, "training rows have no prompt as it is in a column and got no copies"),
    ):
        out += [f"{count:,} {why}"] if count else []
    if grouped:
        out.append(f"column group: {grouped:,} rows and their copies have a value in common, which keeps them in one split")
    return out
