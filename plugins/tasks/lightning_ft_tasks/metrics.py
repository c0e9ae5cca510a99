"""Text metrics that tasks share: exact match, token F1, ROUGE. Scores are 0 to 1; of several references the best counts."""

from __future__ import annotations

import functools
import re
import string
from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import RowMetric

if TYPE_CHECKING:
    from lightning_ft.types import ScoredRow


class TextMetric(RowMetric):
    """The mean over rows of the best score that the prediction has against any reference."""

    percent: ClassVar[bool] = True

    @abstractmethod
    def compare(self, prediction: str, reference: str) -> float:
        """The score of one prediction against one reference, 0 to 1."""

    def score(self, row: ScoredRow) -> float:
        """The best score over the row's references.

        Raises:
            ValueError: the row has no generated answer or no reference. An empty answer is an answer, and scores.
        """
        if row.prediction is None or not row.references:
            lacking = "generated answer" if row.prediction is None else "reference"
            raise ValueError(f"{row.row}: expected a {lacking} for metric {self.name}, got none")
        return max(self.compare(row.prediction, reference) for reference in row.references)


class ExactMatch(TextMetric):
    """Share of answers equal to a reference.

    Normalisation: white space at both ends is stripped, nothing else; case, punctuation and inner spacing count.
    """

    name: ClassVar[str] = "exact_match"

    def compare(self, prediction: str, reference: str) -> float:
        """1 when equal, else 0."""
        return float(prediction.strip() == reference.strip())


class TokenF1(TextMetric):
    """Word overlap as SQuAD scores it (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).

    With c words in common (counted with repetition), precision p = c / |prediction|, recall r = c / |reference|,
    F1 = 2 p r / (p + r). Both texts are lower-cased and lose ASCII punctuation, the articles a, an, the, and superfluous
    white space. Where either has no word left, F1 is 1 if both have none, else 0 (SQuAD 2.0's evaluation).
    """

    name: ClassVar[str] = "token_f1"

    def compare(self, prediction: str, reference: str) -> float:
        """F1 of the normalised words."""
        said, wanted = squad_words(prediction), squad_words(reference)
        if not said or not wanted:
            return float(said == wanted)
        common = (Counter(said) & Counter(wanted)).total()
        return 2 * common / (len(said) + len(wanted))


def squad_words(text: str) -> list[str]:
    """Words after SQuAD's normalisation: lower case, without punctuation and articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


class RougeL(TextMetric):
    """ROUGE-L F1: the longest common subsequence of words over the whole text, line breaks ignored (Lin 2004, section 3).

    By the rouge-score package with Porter stemming; mean of the rows' F1, best reference per row.
    """

    name: ClassVar[str] = "rougeL"

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

    def compare(self, prediction: str, reference: str) -> float:
        """F1 over sentences."""
        return super().compare(one_sentence_a_line(prediction), one_sentence_a_line(reference))


def one_sentence_a_line(text: str) -> str:
    """The text with a line break after every sentence, as rouge-score expects it for rougeLsum."""
    return re.sub(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*", "\n", text.strip())


class WordTokenizer:
    """rouge-score's own words on ASCII text, and words of all other scripts too, which its default drops.

    Lower case; words of more than three ASCII letters are stemmed; each Han, kana or hangul character is a word.
    """

    _words = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])[^\W_])+")

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # nltk ships no types

        self._stem: Any = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        words: list[str] = self._words.findall(text.lower())
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words]


@functools.cache
def scorer(variant: str) -> Any:
    """The rouge-score scorer of a variant; made once, as the stemmer's tables cost."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant], tokenizer=WordTokenizer())
