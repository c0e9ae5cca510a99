"""Text metrics that tasks share: exact match, token F1, word overlap, length, ROUGE; of several references the best counts."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import RowMetric
from lightning_ft_tasks.answers import accepted, answer_of
from lightning_ft_tasks.words import WORDS, WordTokenizer, one_sentence_a_line, squad_words, words

if TYPE_CHECKING:
    from lightning_ft.types import ScoredRow


class TextMetric(RowMetric):
    """The mean over rows of the best score that the prediction has against any reference."""

    percent: ClassVar[bool] = True

    @abstractmethod
    def compare(self, prediction: str, reference: str) -> float:
        """The score of one prediction against one reference, 0 to 1."""

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference.

        Raises:
            ValueError: the row has none.
        """
        accepted(row)

    def score(self, row: ScoredRow) -> float:
        """The best score over the row's references.

        Raises:
            ValueError: the row has no generated answer or no reference. An empty answer is an answer, and scores.
        """
        prediction = answer_of(row, self.name)
        return max(self.compare(prediction, reference) for reference in accepted(row))


class ExactMatch(TextMetric):
    """Share of answers equal to a reference.

    Normalisation: white space at both ends is stripped, nothing else; case, punctuation and inner spacing count.
    """

    name: ClassVar[str] = "exact_match"

    @property
    def signature(self) -> str:
        """When texts are equal."""
        return "strip:ends|case:mixed"

    def compare(self, prediction: str, reference: str) -> float:
        """1 when equal, else 0."""
        return float(prediction.strip() == reference.strip())


class TokenF1(TextMetric):
    """Word overlap as SQuAD scores it (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).

    With c words in common (counted with repetition), precision p = c / |prediction|, recall r = c / |reference|,
    F1 = 2 p r / (p + r). Both texts are lower-cased and lose ASCII punctuation, the articles a, an, the, and superfluous
    white space. Where either has no word left, F1 is 1 if both have none, else 0 (SQuAD 2.0's evaluation); but an empty answer
    to a reference of articles or punctuation alone is wrong.
    """

    name: ClassVar[str] = "token_f1"

    @property
    def signature(self) -> str:
        """Whose normalisation."""
        return "tok:squad|case:lower|refs:best|rows:mean"

    def compare(self, prediction: str, reference: str) -> float:
        """F1 of the normalised words."""
        said, wanted = squad_words(prediction), squad_words(reference)
        if not said or not wanted:
            return float(said == wanted and not missing(prediction, reference))
        common = (Counter(said) & Counter(wanted)).total()
        return 2 * common / (len(said) + len(wanted))


def missing(prediction: str, reference: str) -> bool:
    """Whether the answer is empty where something was expected."""
    return not prediction.strip() and bool(reference.strip())


class WordOverlap(TextMetric):
    """Jaccard index of the sets of words (Jaccard 1912): words in both over words in either.

    Where neither has a word it is 1, but 0 for an empty answer to a reference of punctuation.
    "The cat sat" and "a cat sat down" have cat and sat of the, a, cat, sat, down: 2 / 5.
    """

    name: ClassVar[str] = "word_overlap"

    @property
    def signature(self) -> str:
        """What a word is."""
        return WORDS

    def compare(self, prediction: str, reference: str) -> float:
        """Words in common over all words."""
        said, wanted = set(words(prediction)), set(words(reference))
        if not said and not wanted:
            return float(not missing(prediction, reference))
        return len(said & wanted) / len(said | wanted)


class AnswerLength(RowMetric):
    """Words of the generated answer, mean over rows: "The cat, too." has 3. Neither long nor short is better."""

    name: ClassVar[str] = "answer_length"
    higher_is_better = None

    @property
    def signature(self) -> str:
        """What a word is."""
        return WORDS

    def score(self, row: ScoredRow) -> float:
        """The number of words; 0 for an empty answer.

        Raises:
            ValueError: the row has no generated answer.
        """
        return float(len(words(answer_of(row, self.name))))


class RougeL(TextMetric):
    """ROUGE-L F1: the longest common subsequence of words over the whole text, line breaks ignored (Lin 2004, section 3).

    By the rouge-score package with Porter stemming; mean of the rows' F1, best reference per row.
    """

    name: ClassVar[str] = "rougeL"
    sentences: ClassVar[str] = ""
    """How the signature names the split into sentences; empty: there is none."""

    @property
    def signature(self) -> str:
        """Words and stemmer, how references and rows are summed up, the packages that stem and count."""
        packages = f"nltk:{version('nltk')}|rouge-score:{version('rouge-score')}"
        return f"{WORDS}|stem:porter|{self.sentences}refs:best|rows:mean|{packages}"

    def compare(self, prediction: str, reference: str) -> float:
        """F1 of the variant that the class is named after."""
        return float(scorer(self.name).score(reference, prediction)[self.name].fmeasure)


class Rouge1(RougeL):
    """ROUGE-1 F1: words in common (Lin 2004, section 2). Stemming and references as ROUGE-L."""

    name: ClassVar[str] = "rouge1"


class Rouge2(RougeL):
    """ROUGE-2 F1: pairs of neighbouring words in common (Lin 2004, section 2). Stemming and references as ROUGE-L."""

    name: ClassVar[str] = "rouge2"


class RougeLsum(RougeL):
    """ROUGE-L F1 by sentence: the union of the subsequences of each reference sentence (Lin 2004, section 3.2).

    Sentences end at line breaks and after full stop, exclamation or question mark.
    """

    name: ClassVar[str] = "rougeLsum"
    sentences: ClassVar[str] = "split:lines.!?|"

    def compare(self, prediction: str, reference: str) -> float:
        """F1 over sentences."""
        return super().compare(one_sentence_a_line(prediction), one_sentence_a_line(reference))


@functools.cache
def scorer(variant: str) -> Any:
    """The rouge-score scorer of a variant; made once, as the stemmer's tables cost."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant], tokenizer=WordTokenizer())
