"""Rows that stand there twice: exactly, nearly, with another answer, in another split, or in a benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from lightning_ft.data.split import GROUP_COLUMNS
from lightning_ft_datatools.records import AUGMENTED, bare, folded
from lightning_ft_datatools.similar import NEAR, likeness, near_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft_datatools.records import Record

WORDS = 13
"""Words in a row that two texts have in common by chance almost never (Brown et al. 2020, arXiv:2005.14165, appendix C)."""
SAYS_SOMETHING = 4
"""Words from which a turn within a conversation is a question of its own, and no "go on"."""


def check_copies(records: Sequence[Record]) -> Iterator[tuple[str, Record, str, str]]:
    """Exact and near duplicates within a split; each is compared with the first of its kind."""
    first: dict[tuple[str | None, str], Record] = {}
    single = []
    for record in records:
        key = (record.split, folded(record.whole))
        if key in first:
            if not _made_beside(first[key], record):
                yield "exact_duplicate", record, "the same as", first[key].id
        else:
            first[key] = record
            single.append(record)
    texts = [record.prompt + "\n" + record.answer for record in single]
    seen: set[int] = set()
    for one, other, share in near_pairs(texts):
        earlier, later = single[one], single[other]
        if one in seen or other in seen or earlier.split != later.split or earlier.label != later.label:
            continue  # of a row that goes itself another may be a copy, and stays
        if earlier.beside != later.beside or (not earlier.is_raw and not (bare(earlier.prompt) and bare(later.prompt))):
            continue  # other tools, or signs alone, of which no words are compared
        if folded(earlier.prompt) == folded(later.prompt):
            continue  # another answer to one prompt: a conflict
        if len(_said(later)) > 1 and not _alike(earlier.question, later.question):
            continue  # other questions about what was said before
        if _made_beside(earlier, later) or not _answers_alike(earlier.answer, later.answer):
            continue
        seen.add(other)
        yield "near_duplicate", later, f"{100 * share:.0f} % the same as", earlier.id


def _answers_alike(one: str, other: str) -> bool:
    """Whether two answers have half of their words in common; questions about one passage may be alike by that alone."""
    words, others = (set(bare(text).split()) for text in (one, other))
    return len(words & others) >= 0.5 * len(words | others)


def _made_beside(one: Record, other: Record) -> bool:
    """Whether `data augment` made one of two rows from the other, or both from a third: it binds them by a group."""
    marked = one.row.values.get(AUGMENTED) or other.row.values.get(AUGMENTED)
    return bool(marked) and any(
        (value := one.row.values.get(column)) not in (None, "") and value == other.row.values.get(column)
        for column in GROUP_COLUMNS
    )


def check_conflicts(records: Sequence[Record]) -> Iterator[tuple[str, Record, str, str]]:
    """One prompt with different answers."""
    answers: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record.is_raw or not record.prompt.strip():
            continue
        system = next((m.content for m in record.messages if m.role == "system"), "")
        known = answers[folded(f"{system}\n{record.prompt}")]
        answer = folded(record.answer)
        # Answers beside one another in a row, as the replies of a tree, are meant as such.
        others = (r for r in known.values() if (r.row.source, r.row.line) != (record.row.source, record.row.line))
        if answer not in known and (before := next(others, None)) is not None:
            yield "conflict", record, f"'{record.answer.strip():.40}' here, '{before.answer.strip():.40}' in", before.id
        known.setdefault(answer, record)


def check_splits(records: Sequence[Record]) -> Iterator[tuple[str, Record, str, str]]:
    """Training rows whose prompt, nearly or exactly, is in validation or test."""
    held = [record for record in records if record.split in ("validation", "test")]
    train = [record for record in records if record.split == "train"]
    if held and train:
        yield from _shared("split_leak", train, [(_asked(record), _said(record), record.id) for record in held])


def check_benchmark(records: Sequence[Record], texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Record, str, str]]:
    """Rows that a benchmark has.

    Args:
        records: the rows.
        texts: question and `file:line` of each row of the benchmark.
    """
    yield from _shared("benchmark_leak", records, [([text], [text], place) for text, place in texts], anywhere=True)


def _shared(
    kind: str, records: Sequence[Record], held: Sequence[tuple[Sequence[str], Sequence[str], str]], *, anywhere: bool = False
) -> Iterator[tuple[str, Record, str, str]]:
    """Rows that ask what held-out ones ask.

    Args:
        kind: of the findings.
        records: the rows.
        held: what each held-out row asks by itself, all that its user says, and its place.
        anywhere: whether any turn of a conversation may be what is asked, not the last one alone.
    """
    by_text: dict[str, str] = {}
    by_words: dict[tuple[str, ...], str] = {}
    for asked, said, place in held:
        for text in filter(None, map(bare, asked)):
            by_text.setdefault(text, place)
        for gram in (gram for text in said for gram in _word_grams(bare(text))):
            by_words.setdefault(gram, place)
    left: dict[str, list[Record]] = {}  # of a text once: many equal ones are very many pairs
    for record in records:
        own = list(map(bare, _asked(record, anywhere=anywhere)))
        grams = (gram for text in _said(record) for gram in _word_grams(bare(text)))
        if same := next((text for text in own if text in by_text), None):
            yield kind, record, "the same prompt as", by_text[same]
        elif shared := next((words for words in grams if words in by_words), None):
            yield kind, record, f"{WORDS} words in a row as in", by_words[shared]
        else:
            left.setdefault(own[-1], []).append(record)
    texts, alike, places = [*left, *by_text], list(left.values()), list(by_text.values())
    seen: set[int] = set()
    for one, other, share in near_pairs(texts):
        if one < len(left) <= other and one not in seen:
            seen.add(one)
            yield from (
                (kind, record, f"{100 * share:.0f} % the same prompt as", places[other - len(left)]) for record in alike[one]
            )


def _said(record: Record) -> list[str]:
    """What the user says, turn by turn; of a raw text itself."""
    return [m.content for m in record.messages if m.role == "user"] or [record.answer]


def _asked(record: Record, *, anywhere: bool = False) -> list[str]:
    """What is asked by itself: all that stands before the answer, and the last question (or any) if it is more than a word."""
    said = _said(record)
    if len(said) == 1:
        return [record.prompt or record.answer]
    return [record.prompt, *(text for text in (said if anywhere else said[-1:]) if len(bare(text).split()) >= SAYS_SOMETHING)]


def _alike(one: str, other: str) -> bool:
    return likeness(*(Counter(bare(text).split()) for text in (one, other))) >= NEAR


def _word_grams(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    for start in range(len(words) - WORDS + 1):
        yield tuple(words[start : start + WORDS])
