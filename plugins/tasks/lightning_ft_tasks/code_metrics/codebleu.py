"""CodeBLEU and its parts that look at structure: syntax trees and data flow (Ren et al. 2020, arXiv:2009.10297)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import Metric
from lightning_ft_tasks.answers import accepted, answer_of
from lightning_ft_tasks.code_metrics.dataflow import RULES, dataflow_match
from lightning_ft_tasks.code_metrics.grammar import language_of, require, without_comments
from lightning_ft_tasks.code_metrics.ngrams import bleu, bleu_counts, weighted_counts
from lightning_ft_tasks.code_metrics.programs import code_of
from lightning_ft_tasks.code_metrics.subtrees import subtree_match

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lightning_ft.types import ScoredRow

_LANGUAGES = tuple(RULES)


class TreeMetric(Metric):
    """A metric that parses code. The code is the first fenced block, else all. Languages: python, java, javascript, go."""

    percent: ClassVar[bool] = True
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"right": "y = x + 1\nprint(y)", "wrong": "pass", "reference": "b = a + 2\nprint(b)"},
        {
            "right": "func f(a int) int { return a }",
            "wrong": "",
            "reference": "func f(b int) int { return b }",
            "language": "go",
        },
    )

    @property
    def signature(self) -> str:
        """The versions of the parsers, as grammars differ in what their trees look like."""
        from importlib.metadata import version

        return "code:first fence|" + "|".join(f"{name}:{version(f'tree-sitter-{name}')}" for name in _LANGUAGES)

    def check(self, row: ScoredRow) -> None:
        """See to it that there are a reference and a parser of the row's language.

        Raises:
            ValueError: a reference is missing, the language is none of the four, or its parser is not installed.
        """
        accepted(row)
        require(language_of(row, _LANGUAGES), row.row)

    def counts(self, row: ScoredRow, match: Callable[[str, str, str], tuple[int, int]]) -> tuple[float, float]:
        """What of all references the answer has, and what they have, by a function of two codes without comments."""
        language = language_of(row, _LANGUAGES)
        candidate = without_comments(code_of(answer_of(row, self.name)), language)
        references = (without_comments(code_of(text), language) for text in accepted(row))
        found = [match(candidate, reference, language) for reference in references]
        return float(sum(has for has, _ in found)), float(sum(wanted for _, wanted in found))


class StructureMetric(TreeMetric):
    """The share of what the references have that the answers have, too, over all rows together, as the published code has it.

    So long references count for more than short ones, and with several references of a row all of them count. Comments and
    docstrings are left out.
    """

    per_row: ClassVar[bool] = True

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """How much of the references the answer has, and how much they have."""
        return self.counts(row, self.match)

    @abstractmethod
    def match(self, candidate: str, reference: str, language: str) -> tuple[int, int]:
        """What of the reference the candidate has, and what the reference has; both without comments."""


class CodebleuSyntax(StructureMetric):
    """Share of the references' subtrees that the answers' syntax trees have (section 3.2), names and literals set aside."""

    name: ClassVar[str] = "codebleu_syntax"

    def match(self, candidate: str, reference: str, language: str) -> tuple[int, int]:
        """Counted subtrees."""
        return subtree_match(candidate, reference, language)


class CodebleuDataflow(StructureMetric):
    """Share of the references' data-flow edges that the answers have (section 3.3), variables renamed by their order.

    A reference without any, such as a constant, does not count; where no reference has one, the value is 0 and says nothing.
    """

    name: ClassVar[str] = "codebleu_dataflow"

    def match(self, candidate: str, reference: str, language: str) -> tuple[int, int]:
        """Counted edges."""
        return dataflow_match(candidate, reference, language)


class Codebleu(TreeMetric):
    """CodeBLEU: the mean of BLEU, BLEU with keywords weighted, `codebleu_syntax` and `codebleu_dataflow` (section 3).

    In the parts of BLEU comments count, and words are what white space separates. Where no reference has a data flow, that part
    is 0, as in CodeXGLUE's code; its package on PyPI takes 1.
    """

    name: ClassVar[str] = "codebleu"

    @property
    def signature(self) -> str:
        """The versions of the parsers, what words are, and the weights of the parts."""
        return f"{super().signature}|words:white space|weights:1/4"

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Ten sums of BLEU, ten of the weighted one, two of syntax, two of data flow."""
        candidate = code_of(answer_of(row, self.name)).split()
        references = [code_of(text).split() for text in accepted(row)]
        words = bleu_counts(candidate, references)
        weighted = weighted_counts(candidate, references, language_of(row, _LANGUAGES))
        return [*words, *weighted, *self.counts(row, subtree_match), *self.counts(row, dataflow_match)]

    def finish(self, totals: Tensor) -> Tensor:
        """The mean of the four parts, (..., 24) -> (...)."""
        syntax, dataflow = (totals[..., i] / totals[..., i + 1].clamp_min(1e-12) for i in (20, 22))
        return (bleu(totals[..., :10]) + bleu(totals[..., 10:20]) + syntax + dataflow) / 4
