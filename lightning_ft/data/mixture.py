"""How many rows of each source an epoch has, and which: shares by weight, or by size to the power of 1 / temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.data.sources import expand
from lightning_ft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lightning_ft.config import TrainingConfig


@dataclass(frozen=True)
class Mixture:
    """Sources with their training rows and shares.

    An epoch has as many rows as all sources together, `counts` of them from each source. A source goes through seeded
    orders of its rows, one after the other and on from epoch to epoch, so that of any two of its rows none is met twice
    more often than the other.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    """Numbers of each source's rows in the training table."""
    counts: tuple[int, ...]
    """Rows of each source in an epoch."""
    seed: int

    def epoch(self, number: int) -> NDArray[np.int64]:
        """The rows of an epoch, source by source; a row may come several times."""
        return np.concatenate([self._taken(source, number) for source in range(len(self.names))])

    def _taken(self, source: int, epoch: int) -> NDArray[np.int64]:
        rows, count = self.rows[source], self.counts[source]
        first, last = epoch * count, (epoch + 1) * count
        rounds = range(first // len(rows), -(-last // len(rows)))
        if not rounds:
            return rows[:0]
        orders = [np.random.default_rng([self.seed, source, turn]).permutation(rows) for turn in rounds]
        start = first - rounds.start * len(rows)
        return np.concatenate(orders)[start : start + count]

    def summary(self) -> str:
        """One line for the log."""
        parts = [
            f"{name} {count:,} of its {len(rows):,} rows ({count / len(rows):.2f} times each, {100 * share:.1f} %)"
            for name, rows, count, share in zip(self.names, self.rows, self.counts, self._shares(), strict=True)
        ]
        return f"mixture: an epoch has {'; '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ledger.json."""
        return {
            name: {"rows": len(rows), "rows_per_epoch": count, "share": share}
            for name, rows, count, share in zip(self.names, self.rows, self.counts, self._shares(), strict=True)
        }

    def _shares(self) -> list[float]:
        return [count / sum(self.counts) for count in self.counts]


def mixture_of(config: TrainingConfig, sources: Sequence[str]) -> Mixture | None:
    """The mixture that `--mix` or `--mix_temperature` asks for; None where neither is given.

    Args:
        config: The run's options.
        sources: The file of each training row.

    Raises:
        UsageError: a weight for what is not among `--data`, none for what is, or a source without training rows.
    """
    if not config.mix and config.mix_temperature is None:
        return None
    of_entry = {entry: {str(path) for path in expand([entry])} for entry in config.data}
    _check_names(config.mix, list(of_entry))
    found = np.asarray(sources, dtype=object)
    rows = [np.flatnonzero(np.isin(found, sorted(files))) for files in of_entry.values()]
    for entry, own in zip(of_entry, rows, strict=True):
        if not len(own):
            raise UsageError(f"Expected training rows in '{entry}' for the mixture, got none; look at its splits.")
    if config.mix:
        weights = [config.mix[entry] for entry in of_entry]
    else:
        weights = by_size([len(own) for own in rows], config.mix_temperature or 1.0)
    return Mixture(tuple(of_entry), tuple(rows), apportioned(weights, len(found)), config.seed)


def by_size(sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights n^(1/T) up to a factor (Conneau and Lample 2019, arXiv:1901.07291, section 3.1), which no T makes overflow."""
    numbers = np.asarray(sizes, dtype=np.float64)
    weights: list[float] = ((numbers / numbers.max()) ** (1 / temperature)).tolist()
    return weights


def apportioned(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers in the proportion of the weights that add up to `total`: the largest remainders are rounded up."""
    exact = np.asarray(weights, dtype=np.float64) * total / sum(weights)
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return tuple(counts.tolist())


def _check_names(mix: Mapping[str, float], entries: list[str]) -> None:
    for name in mix:
        if name not in entries:
            raise UsageError(f"Expected --mix to have the names of --data, got '{name}'.{did_you_mean(name, entries)}")
    for entry in entries:
        if mix and entry not in mix:
            raise UsageError(f"Expected --mix to have a weight for each of --data, got none for '{entry}'; type 0.5, say.")
