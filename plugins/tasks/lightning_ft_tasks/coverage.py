"""How well a tokenizer knows the words of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lightning_ft.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import ScoredRow


class VocabularyCoverage(Metric):
    """Share of the words of the given texts that the tokenizer writes as at most 3 tokens: how well it knows the field.

    The model has no part in it. A word is a run of letters, and of Han, kana and hangul each character (`lightning_ft.words`).
    Written letter by letter, `the heart's myocarditis` has two such words, `the` and `s`, of four: 0.5.
    """

    name: ClassVar[str] = "vocabulary_coverage"
    reads = "tokens"
    reads_words: ClassVar[bool] = True
    percent: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """What a word is, and how many tokens it may take."""
        return "tok:letters|pieces:3"

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Words of at most 3 tokens, and words."""
        return (row.words - row.split_words, row.words)
