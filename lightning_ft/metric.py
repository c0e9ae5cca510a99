"""The contract of a metric: sufficient statistics per row, and a value from their sum.

A metric that is a function of sums over rows can be resampled exactly, so that every number in a verdict has a
paired-bootstrap interval: draw rows, add their statistics, finish.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import ScoredRow


class Metric(TorchMetric):
    """A metric over scored rows. State: one (N, K) list of statistics, concatenated over ranks by torchmetrics."""

    name: ClassVar[str]
    """What users type and read, case-insensitively."""
    reads: ClassVar[Literal["tokens", "text", "candidates", "pair"]] = "text"
    """`tokens`: likelihoods of the given answers; `text`: answers that the model generated; `candidates`: likelihoods of every
    answer that the task allows; `pair`: likelihoods of the better (`nll`, `tokens`) and the worse answer (`worse`) of a pair;
    an answer that `max_length` cut off has no tokens, and its pair is a wrong one."""
    reads_words: ClassVar[bool] = False
    """Whether it reads `words` and `split_words` of a row, which are counted only where a metric does."""
    higher_is_better: bool | None = True
    """None: neither is better, as with a length; a verdict tells the difference and does not judge it."""
    percent: ClassVar[bool] = False
    """Whether the value is a share that tables show in per cent."""
    per_row: ClassVar[bool] = False
    """Whether the first statistic over the second is the row's own score: then spread, lowest and highest are told, too."""
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Rows for the test kit where its own do not fit: answers that are `right` and `wrong`, `reference`, other columns."""
    full_state_update: bool | None = False

    rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    def signature(self) -> str:
        """How the value was computed (package, version, variant), for whoever wants it again. Empty: the name says it."""
        return ""

    def check(self, row: ScoredRow) -> None:
        """Look at a row that no model has answered yet: is what the metric needs beside the answer there?

        Called before anything is generated, so that an hour's answers are not lost to a missing column: for every row that
        the model answers, and for metrics of pairs for every row.

        Raises:
            ValueError: something is missing; the message begins with the row and says what was expected.
        """

    def check_all(self, rows: Sequence[ScoredRow]) -> None:
        """Look at all rows together, each of which `check` found good: are there enough of what belongs together?

        Raises:
            ValueError: there are not; the message begins with a row.
        """

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Look once at all rows that the metric will read, before the first of them: the classes there are, words seen before.

        `statistics` may depend on what was found here, so that values over classes or over a whole set are sums over rows.
        """

    @abstractmethod
    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """K numbers about one row; K is the same for every row.

        A row that the metric does not apply to has zeros. An empty answer applies, and is wrong.
        """

    def finish(self, totals: Tensor) -> Tensor:
        """The value from summed statistics, (..., K) -> (...). Default: first over second (a weighted mean)."""
        return totals[..., 0] / totals[..., 1].clamp_min(1e-12)

    def details(self, rows: Sequence[ScoredRow]) -> Mapping[str, Any]:
        """What else it finds in all rows that it reads, after `prepare`, as plain values for results.json."""
        return {}

    def update(self, rows: Sequence[ScoredRow]) -> None:
        """Add scored rows."""
        if rows:
            self.rows.append(torch.tensor([list(self.statistics(r)) for r in rows], dtype=torch.float64, device=self.device))

    def compute(self) -> Tensor:
        """The value over all rows so far."""
        return self.finish(self.table().sum(0))

    def table(self) -> Tensor:
        """(N, K) float64 statistics of all rows so far, in the order they were given."""
        rows = self.rows if isinstance(self.rows, list) else [self.rows]
        return torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.float64)


class RowMetric(Metric):
    """A metric that is the mean of a score per row; such a metric can also serve as a reward."""

    per_row: ClassVar[bool] = True

    @abstractmethod
    def score(self, row: ScoredRow) -> float:
        """The row's score."""

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The score and a one, so that the value is the mean score."""
        return (self.score(row), 1.0)
