from __future__ import annotations

import json
import random
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sacrebleu
import torch
from lightning_ft_tasks.translation import Bleu, BleuChar, BleuZh, Chrf, ChrfPlusPlus, Ter, TranslationMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="ascii"))
"""Three texts in each of eleven scripts: a sentence, the same in other words, another one."""
THEIRS: dict[type[TranslationMetric], Any] = {
    Bleu: lambda: BLEU(),
    BleuZh: lambda: BLEU(tokenize="zh"),
    BleuChar: lambda: BLEU(tokenize="char"),
    Chrf: lambda: CHRF(),
    ChrfPlusPlus: lambda: CHRF(word_order=2),
    Ter: lambda: TER(),
}
ALL = list(THEIRS)


def row(prediction: str | None, *references: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), prediction=prediction, references=references)


def made(metric: type[TranslationMetric], rows: Sequence[ScoredRow]) -> TranslationMetric:
    ready = metric()
    ready.prepare(rows)
    ready.update(rows)
    return ready


def value(metric: type[TranslationMetric], *rows: ScoredRow) -> float:
    return float(made(metric, rows).compute())


def streams(rows: Sequence[ScoredRow]) -> tuple[list[str], list[list[str | None]]]:
    """Predictions and references as sacrebleu takes them: the first of each row, the second of each row ..."""
    return [r.prediction or "" for r in rows], [list(s) for s in zip_longest(*(r.references for r in rows))]


def spoiled(text: str, draw: random.Random) -> str:
    """The text with some words or characters lost, doubled, swapped, or with marks and breaks set between."""
    parts = text.split() if " " in text else list(text)
    for _ in range(draw.randrange(6)):
        i, j = draw.randrange(len(parts)), draw.randrange(len(parts))
        match draw.randrange(5):
            case 0:
                parts[i] = ""
            case 1:
                parts[i] = parts[j]
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
            case 3:
                parts[i] += draw.choice([".", "&amp;", "-\n", '"', "\n", "(", "\U0001f389", " - "])
            case 4:
                parts[i] = parts[i].upper()
    return (" " if " " in text else "").join(parts)


def corpus(seed: int, references: Sequence[int]) -> list[ScoredRow]:
    """30 rows of all scripts with so many references each, some texts empty."""
    draw = random.Random(seed)
    rows = []
    for _ in range(30):
        sentence, other_words, another = draw.choice(list(TEXTS.values()))
        prediction = draw.choice([spoiled(sentence, draw), spoiled(other_words, draw), another, "", "\U0001f44d", sentence[:9]])
        accepted = [
            draw.choice([sentence, spoiled(sentence, draw), other_words, another, ""]) for _ in range(draw.choice(references))
        ]
        rows.append(row(prediction, *accepted))
    return rows


@pytest.mark.parametrize("metric", ALL)
def test_keeps_the_contract(metric: type[TranslationMetric]) -> None:
    check_metric(metric)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("references", [(1,), (3,), (1, 2, 4)], ids=str)
def test_is_what_sacrebleu_says(metric: type[TranslationMetric], references: tuple[int, ...]) -> None:
    for seed in range(4):
        rows = corpus(seed, references)
        theirs, ours = THEIRS[metric](), made(metric, rows)
        expected = theirs.corpus_score(*streams(rows))
        got = float(ours.compute()) * 100
        assert got == pytest.approx(expected.score, rel=1e-12)
        assert f"{got:.2f}" == f"{expected.score:.2f}"
        assert ours.signature == theirs.get_signature().format()


@pytest.mark.parametrize("metric", ALL)
def test_each_script_alone_and_each_row_alone(metric: type[TranslationMetric]) -> None:
    for sentence, other_words, another in TEXTS.values():
        rows = [row(other_words, sentence, another), row(sentence[: len(sentence) // 2], sentence, other_words)]
        for part in (rows, rows[:1], rows[1:]):
            expected = THEIRS[metric]().corpus_score(*streams(part)).score
            assert value(metric, *part) * 100 == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("metric", ALL)
def test_drawn_rows_are_scored_by_their_summed_statistics(metric: type[TranslationMetric]) -> None:
    """As a bootstrap does it, many draws at once."""
    rows = corpus(9, (2,))
    draws = torch.randint(30, (5, 30), generator=torch.Generator().manual_seed(3))
    ready = made(metric, rows)
    resampled = ready.finish(ready.table()[draws].sum(1))
    for drawn, got in zip(draws.tolist(), resampled.tolist(), strict=True):
        expected = THEIRS[metric]().corpus_score(*streams([rows[i] for i in drawn])).score
        assert got * 100 == pytest.approx(expected, rel=1e-12)
    assert ready.finish(torch.zeros_like(ready.table()[:2])).tolist() == [0, 0]


def test_bleu_by_hand() -> None:
    """The docstring's: (5/6 x 3/5 x 2/4 x 1/3)^(1/4)."""
    assert value(Bleu, row("the cat sat on the mat", "the cat sat on a mat")) == pytest.approx((1 / 12) ** 0.25)
    # 4 words for 6: BP = exp(1 - 6/4); all n-grams are right
    assert value(Bleu, row("the cat sat on", "the cat sat on the mat")) == pytest.approx(2.718281828459045**-0.5)
    # no pair is right, so of 3, 2, 1 n-grams 1/2, 1/4, 1/8 are: 2/4 x 1/6 x 1/8 x 1/8
    assert value(Bleu, row("a x b y", "a p b q")) == pytest.approx((1 / 2 / 6 / 8 / 8) ** 0.25)
    # nothing is right at all: no smoothing makes something of it
    assert value(Bleu, row("a b c d e", "v w x y z")) == 0
    # the closest reference has 5 words, so nothing is subtracted for length
    assert value(Bleu, row("a b c d e", "a b c d e", "a b c d e f g h")) == 1


def test_the_others_by_hand() -> None:
    assert value(Chrf, row("abc", "abd")) == pytest.approx(7 / 18)
    # of words nothing: neither "abc" nor pairs, which do not exist; over 4 orders that both have
    assert value(ChrfPlusPlus, row("abc", "abd")) == pytest.approx((2 / 3 + 1 / 2) / 4)
    # the bracket is a character and a word of its own: 1 of 2 characters, 1 of 2 words, no pair of either, over 4 orders
    assert value(ChrfPlusPlus, row("(a", "(b")) == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4)
    assert value(Ter, row("sat the cat", "the cat sat down")) == pytest.approx(2 / 4)
    assert value(Ter, row("a b c d", "a b"), row("x", "x")) == pytest.approx(2 / 3)
    assert value(Ter, row("a b c", "a")) == 2


def test_the_set_is_not_the_mean_of_its_rows() -> None:
    rows = [row("the cat sat on the mat today", "the cat sat on the mat today"), row("no", "a dog ran off")]
    apart = [value(Bleu, one) for one in rows]
    assert apart == [1, 0]
    # 7 of 8 words, all 6, 5, 4 longer n-grams, 8 words for 11
    assert value(Bleu, *rows) == pytest.approx((7 / 8) ** 0.25 * 2.718281828459045 ** (1 - 11 / 8))


def test_empty_texts() -> None:
    for metric in (Bleu, BleuZh, BleuChar, Chrf, ChrfPlusPlus):
        assert value(metric, row("", "a b c d e")) == 0
        whole, half = row("a b c d e f", "a b c d e f"), row("", "a b c d e f")
        assert 0 < value(metric, whole, half) < value(metric, whole) == 1
    assert value(Ter, row("", "a b")) == 1
    assert value(Ter, row("a b", "")) == 1
    assert value(Ter, row("", "")) == 0


def test_languages_without_spaces_have_their_own_words() -> None:
    sentence, other_words, _ = TEXTS["zh"]
    assert value(Bleu, row(other_words, sentence)) == 0
    assert value(BleuZh, row(other_words, sentence)) > 0.1
    assert value(BleuChar, row(TEXTS["ja"][1], TEXTS["ja"][0])) > 0.05


@pytest.mark.parametrize(
    ("metric", "said", "right"),
    [(BleuZh, "\u4e00\u4e8c\u4e09\u56db\u4e94", "\u4e00\u4e8c\u4e09\u56db\u516d"), (BleuChar, "abcde", "abcdf")],
)
def test_bleu_of_characters_by_hand(metric: type[TranslationMetric], said: str, right: str) -> None:
    """Of five characters the last is another: 4/5, 3/4, 2/3 and 1/2 of the n-grams are right, and 0.2 ** (1/4) = 0.6687."""
    assert value(metric, row(said, right)) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-12)


def test_signature_is_sacrebleus() -> None:
    version = f"version:{sacrebleu.__version__}"
    assert Bleu().signature == f"case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert made(Bleu, [row("a", "b")]).signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert made(BleuZh, [row("a", "b", "c")] * 2).signature == f"nrefs:2|case:mixed|eff:no|tok:zh|smooth:exp|{version}"
    assert (
        made(Chrf, [row("a", "b"), row("a", "b", "c")]).signature
        == f"nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"
    )
    assert made(ChrfPlusPlus, [row("a", "b")]).signature.endswith(f"|nc:6|nw:2|space:no|{version}")
    assert made(Ter, [row("a", "b")]).signature == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|{version}"


def test_what_is_missing_is_said_before_and_after() -> None:
    with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
        Bleu().check(row(None))
    Ter().check(row(None, "x"))
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric chrf, got none"):
        Chrf().statistics(row(None, "x"))
    with pytest.raises(ValueError, match="f:1: expected a reference, got none"):
        Ter().statistics(row("x"))


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_on_real_answers(metric: type[TranslationMetric], language: str, shared_data: Path) -> None:
    """Rejected answers of people's comparisons against the chosen ones; their beginnings, as TER takes long for long texts."""
    found = json.loads((shared_data / "llamafactory_demo" / f"dpo_{language}_demo.json").read_text(encoding="utf-8"))
    rows = [row(pair["rejected"]["value"][:120], pair["chosen"]["value"][:120]) for pair in found[:40]]
    expected = THEIRS[metric]().corpus_score(*streams(rows)).score
    assert value(metric, *rows) * 100 == pytest.approx(expected, rel=1e-12)
