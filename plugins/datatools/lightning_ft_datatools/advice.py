"""From numbers to what to do: the data as a whole, and what so many rows are good for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_ft_datatools.findings import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft_datatools.capacity import Capacity
    from lightning_ft_datatools.findings import Finding

_LEAST = 50
"""Rows below which held-out rows say little."""
_CURATED = 1000
"""Rows of hand-picked instructions that taught a model its manner (Zhou et al. 2023, LIMA, arXiv:2305.11206)."""
_MANY = 10_000
"""Rows up to which low-rank and full training learn instructions alike (Biderman et al. 2024, arXiv:2405.09673, section 3)."""


def remarks(balance: Mapping[str, Mapping[str, int]], diversity: Mapping[str, float], lengths: Mapping[str, Any]) -> list[str]:
    """What concerns no single row."""
    out = []
    for name in ("class", "source"):
        counts = balance.get(name, {})
        if counts and max(counts.values()) > 10 * min(counts.values()):
            most, least = max(counts, key=lambda key: counts[key]), min(counts, key=lambda key: counts[key])
            out.append(
                f"The {name} '{most}' has {counts[most]:,} rows, '{least}' {counts[least]:,}: a model will prefer the first."
            )
    if diversity.get("nearest_similarity", 0) > 0.9:
        out.append("Most prompts have nearly a twin: more different ones would teach more than more rows.")
    if 0 < lengths["supervised"] < 0.05 * lengths["tokens"]:
        out.append(f"Only {100 * lengths['supervised'] / lengths['tokens']:.1f} % of the tokens have a loss.")
    return out


def advice(rows: int, lengths: Mapping[str, Any], issues: Sequence[Finding], capacity: Capacity | None = None) -> list[str]:
    """Recommendations, the most pressing first.

    Args:
        rows: examples.
        lengths: as `checks.lengths.lengths` makes them.
        issues: all findings.
        capacity: of the model that is to learn them, where its weights are at hand.
    """
    out = []
    bad = {finding.row for finding in issues if KINDS[finding.kind].severity == "error"}
    if bad:
        have, them = ("row has", "it") if len(bad) == 1 else ("rows have", "them")
        out.append(f"{len(bad):,} {have} errors: mend {them}, or take {them} out with --fix OUT.")
    if not rows:
        return out
    if rows < _LEAST:
        are = "are" if rows > 1 else "is"
        out.append(
            f"{rows:,} row{'s' * (rows > 1)} {are} few: below {_LEAST} the held-out part is too small to show a difference."
        )
    elif rows < _CURATED:
        out.append(f"{rows:,} rows teach a manner or a narrow task: LoRA of rank 8 to 16, several epochs; look at each row.")
    elif rows <= _MANY:
        out.append(f"{rows:,} rows suit LoRA of rank 16 to 64; full training gains little below {_MANY:,}.")
    else:
        out.append(f"{rows:,} rows can feed full training, or LoRA of rank 64 and more.")
    if capacity is not None:
        out += capacity.advice(rows, lengths["supervised"] - lengths["cut_supervised"])
    if lengths["cut_supervised"]:
        share = 100 * lengths["cut_supervised"] / lengths["supervised"]
        out.append(f"--max_length {lengths['max_length']} cuts {share:.1f} % of the tokens with a loss; {_longer(lengths)}.")
    return out


def _longer(lengths: Mapping[str, Any]) -> str:
    wanted, positions = lengths["percentiles"]["p99"], lengths["positions"]
    if wanted <= positions:
        return f"{wanted} would keep 99 % of the rows whole"
    return f"99 % of the rows have up to {wanted}, and the model has places for {positions}"
