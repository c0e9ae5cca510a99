"""Metrics of translations by sacrebleu: BLEU, chrF, chrF++ and TER of a whole set from sums over its rows.

Statistics are sacrebleu's own, so that a value is what `sacrebleu.corpus_bleu` (`corpus_chrf`, `corpus_ter`) gives on the
same texts, divided by 100. Texts must be as people write them, not split into tokens.
"""

from __future__ import annotations

import functools
import string
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from lightning_ft.metric import Metric
from lightning_ft_tasks.answers import accepted, answer_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from sacrebleu.metrics.base import Metric as Scorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER
    from torch import Tensor

    from lightning_ft.types import ScoredRow

ORDERS = 4
"""Longest n-grams of BLEU."""


class TranslationMetric(Metric):
    """A metric of sacrebleu's; all references of a row count, and rows may have different numbers of them."""

    percent: ClassVar[bool] = True
    num_references: int | None = None
    """References of each row; -1: it varies; None: not known before `prepare`."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """The object of sacrebleu's with this metric's options."""

    @abstractmethod
    def counts(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The statistics of a prediction with its references."""

    @property
    def signature(self) -> str:
        """sacrebleu's; the number of references is in it as soon as the rows are known."""
        scorer = self.scorer()
        scorer.num_refs = -1 if self.num_references is None else self.num_references
        signature = scorer.get_signature()
        if self.num_references is None:
            signature.update("nrefs", None)
        return signature.format()

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference.

        Raises:
            ValueError: the row has none.
        """
        accepted(row)

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Find how many references rows have."""
        found = {len(row.references) for row in rows}
        self.num_references = found.pop() if len(found) == 1 else -1

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The counts of the row.

        Raises:
            ValueError: the row has no generated answer or no reference.
        """
        return self.counts(answer_of(row, self.name), accepted(row))


class Bleu(TranslationMetric):
    """BLEU-4 of the set (Papineni et al. 2002), words as in mteval-v13a: for languages that write spaces between words.

    BLEU = BP exp(1/4 sum_n log p_n) over n = 1 to 4 with p_n = correct n-grams / n-grams, summed over rows before dividing;
    correct ones are clipped by the reference that has most. BP = min(1, exp(1 - r / h)) for h words and references of r, of
    each row the closest in length. The k-th order without a correct n-gram has p_n = 1 / (2^k n-grams) (`exp`, Chen and
    Cherry 2014, method 3). 0 where no word or no 4-gram is there.

    "the cat sat on the mat" for "the cat sat on a mat": p = 5/6, 3/5, 2/4, 1/3, BP = 1, BLEU = (1/12)^(1/4) = 0.5373.
    """

    name: ClassVar[str] = "bleu"
    tokenizer: ClassVar[str] = "13a"
    """sacrebleu's name of what splits words."""

    def scorer(self) -> BLEU:
        """BLEU with the tokenizer that the class is for."""
        return bleu_scorer(self.tokenizer)

    def counts(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Words of the prediction, of the closest reference, 4 numbers of correct n-grams, 4 of all."""
        found = self.scorer().corpus_score([prediction], [[reference] for reference in references])
        return (found.sys_len, found.ref_len, *found.counts, *found.totals)

    def finish(self, totals: Tensor) -> Tensor:
        """BLEU of summed counts, (..., 10) -> (...)."""
        words, wanted = totals[..., 0], totals[..., 1]
        correct, every = totals[..., 2 : 2 + ORDERS], totals[..., 2 + ORDERS : 2 + 2 * ORDERS]
        unmatched = (correct == 0) & (every > 0)
        smoothed = torch.where(unmatched, torch.exp2(-unmatched.cumsum(-1).to(correct.dtype)), correct)
        precisions = smoothed / every.clamp_min(1)
        penalty = torch.exp((1 - wanted / words.clamp_min(1)).clamp_max(0))
        value = penalty * torch.exp(precisions.log().mean(-1))
        return torch.where(correct.sum(-1) > 0, value, torch.zeros_like(value))


class BleuZh(Bleu):
    """BLEU as `bleu`, each Han character a word and the rest as mteval-v13a: for Chinese."""

    name: ClassVar[str] = "bleu_zh"
    tokenizer: ClassVar[str] = "zh"


class BleuChar(Bleu):
    """BLEU as `bleu`, each character a word: for Japanese, Thai and others without spaces, with no dictionary to install."""

    name: ClassVar[str] = "bleu_char"
    tokenizer: ClassVar[str] = "char"


class Chrf(TranslationMetric):
    """chrF2 of the set: F-score of character n-grams, 1 to 6, white space left out (Popovic 2015, section 2).

    chrF = (1 + b^2) P R / (b^2 P + R), b = 2; P and R are the means of precision and recall over those orders that both
    texts have, of counts summed over rows. Of several references each row takes the one with the best chrF.

    "abc" for "abd": a and b of 3, ab of 2, nothing of 1 in common: P = R = (2/3 + 1/2 + 0) / 3 = 7/18.
    """

    name: ClassVar[str] = "chrf"
    word_order: ClassVar[int] = 0
    """Longest n-grams of words that count beside those of characters."""

    def scorer(self) -> CHRF:
        """CHRF with the class's longest n-grams of words."""
        return chrf_scorer(self.word_order)

    def counts(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """For each order the n-grams of the prediction, of the best reference, and those in common."""
        said = self._ngrams(prediction)
        each = [_matches(said, self._ngrams(reference)) for reference in references]
        if len(each) == 1:
            return each[0]
        return each[int(self.finish(torch.tensor(each, dtype=torch.float64)).argmax())]

    def _ngrams(self, text: str) -> list[Counter[str]]:
        """N-grams by order, those of characters first."""
        from sacrebleu.metrics.helpers import extract_all_char_ngrams, extract_word_ngrams

        scorer, words = self.scorer(), _words_and_marks(text)
        by_words = [extract_word_ngrams(words, n) for n in range(1, scorer.word_order + 1)]
        return [*extract_all_char_ngrams(text, scorer.char_order, scorer.whitespace), *by_words]

    def finish(self, totals: Tensor) -> Tensor:
        """F-score of summed counts, (..., 3 x orders) -> (...)."""
        square = self.scorer().beta ** 2
        precision = recall = orders = torch.zeros_like(totals[..., 0])
        for i in range(0, totals.shape[-1] - 2, 3):  # one after the other: of equally good references the same is taken
            said, wanted, common = totals[..., i], totals[..., i + 1], totals[..., i + 2]
            both = said > 0  # and wanted > 0: where a reference lacks an order, none of ours was counted
            precision = precision + torch.where(both, common / said, 0.0)
            recall = recall + torch.where(both, common / wanted, 0.0)
            orders = orders + both
        precision, recall = precision / orders.clamp_min(1), recall / orders.clamp_min(1)
        value = (1 + square) * precision * recall / (square * precision + recall)
        return torch.where(precision + recall > 0, value, torch.zeros_like(value))


class ChrfPlusPlus(Chrf):
    """chrF++: as `chrf`, with n-grams of one and two words as two further orders (Popovic 2017)."""

    name: ClassVar[str] = "chrf_plus_plus"
    word_order: ClassVar[int] = 2


class Ter(TranslationMetric):
    """Translation edit rate of the set: fewest edits to a reference over words of the references (Snover et al. 2006).

    An edit inserts, deletes or replaces a word, or shifts a run of words; the search is that of Tercom. Of several references
    the nearest gives the edits and their mean the length. Words are what white space separates, in lower case; a rate can be
    above 1. Empty references with a prediction count as rate 1.

    "sat the cat" for "the cat sat down": one shift, one insertion, 4 words: 2 / 4.
    """

    name: ClassVar[str] = "ter"
    higher_is_better = False

    def scorer(self) -> TER:
        """TER as Tercom does it."""
        return ter_scorer()

    def counts(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Edits, and mean length of the references in words."""
        found = self.scorer().corpus_score([prediction], [[reference] for reference in references])
        return (found.num_edits, found.ref_length)

    def finish(self, totals: Tensor) -> Tensor:
        """Edits by words, (..., 2) -> (...)."""
        edits, words = totals[..., 0], totals[..., 1]
        return torch.where(words > 0, edits / words, (edits > 0).to(edits.dtype))


def _matches(said: Sequence[Counter[str]], wanted: Sequence[Counter[str]]) -> list[float]:
    """By order: n-grams of one text, of the other, in common. An order that the second text lacks counts for none."""
    found: list[float] = []
    for ours, theirs in zip(said, wanted, strict=True):
        found += (ours.total() if theirs else 0, theirs.total(), (ours & theirs).total())
    return found


def _words_and_marks(text: str) -> list[str]:
    """Words as chrF++ splits them: a mark at the end of a word is a word of its own, else one at its beginning is."""
    found = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


@functools.cache
def bleu_scorer(tokenizer: str) -> BLEU:
    """BLEU of sacrebleu's with its defaults; made once."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer)


@functools.cache
def chrf_scorer(word_order: int) -> CHRF:
    """The chrF of sacrebleu's with its defaults; made once."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


@functools.cache
def ter_scorer() -> TER:
    """TER of sacrebleu's with its defaults; made once."""
    from sacrebleu.metrics.ter import TER

    return TER()
