"""METEOR: words matched as they are, by their stem and by WordNet's synonyms, less what their order differs; by NLTK."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft_tasks.metrics import TextMetric
from lightning_ft_tasks.words import WORDS, words

if TYPE_CHECKING:
    from lightning_ft.types import ScoredRow


@functools.cache
def wordnet() -> Any:
    """NLTK's reader of WordNet.

    Raises:
        UsageError: its data are not on this machine, or not whole.
    """
    import nltk

    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        from nltk.corpus import wordnet as reader

        try:
            reader.ensure_loaded()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"Expected NLTK's data of WordNet to be whole; {error}: type `python -m nltk.downloader wordnet`."
            ) from error
        return reader
    raise UsageError(
        "Expected NLTK's data of WordNet for metric meteor, which counts synonyms; found none: type "
        "`python -m nltk.downloader wordnet`."
    )


class Meteor(TextMetric):
    """METEOR (Banerjee and Lavie 2005), English: F of matched words, less a penalty for the runs that they fall into.

    A word matches one that is the same, has the same Porter stem, or is a synonym, each once. With m matches in c runs,
    precision P, recall R: F = P R / (0.9 P + 0.1 R), score = F (1 - 0.5 (c / m)^3). "the cat sat" against itself has three
    matches in one run: 1 - 0.5 / 27 = 0.9815.
    """

    name: ClassVar[str] = "meteor"

    @property
    def signature(self) -> str:
        """What a word is, what matches, the parameters and the package."""
        return f"{WORDS}|stem:porter|synonyms:wordnet|alpha:0.9|beta:3|gamma:0.5|refs:best|rows:mean|nltk:{version('nltk')}"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row without a reference, and a machine without WordNet.

        Raises:
            ValueError: the row has none. UsageError: WordNet is not there.
        """
        super().check(row)
        wordnet()

    def compare(self, prediction: str, reference: str) -> float:
        """The score of one answer against one reference."""
        from nltk.translate.meteor_score import single_meteor_score

        return float(single_meteor_score(words(reference), words(prediction), wordnet=wordnet()))
