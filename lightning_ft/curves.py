"""What a run logged step by step, read for charts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lightning_ft import layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CURVES: tuple[tuple[str, tuple[tuple[str, str], ...], str, float], ...] = (
    ("Loss", (("loss", "training"), ("val_loss", "validation")), "nats per token or pair", 1),
    ("Token accuracy", (("token_accuracy", "training"), ("val_token_accuracy", "validation")), "per cent of tokens", 100),
    ("Learning rate", (("learning_rate", "learning rate"),), "peak group", 1),
    ("Gradient norm before clipping", (("grad_norm", "norm"),), "2-norm", 1),
    ("Throughput", (("tokens_per_second", "all"), ("supervised_tokens_per_second", "supervised")), "tokens per second", 1),
    ("Padding", (("padding_share", "padding"),), "per cent of tokens", 100),
    ("Peak memory", (("peak_memory", "memory"),), "GiB", 2.0**-30),
    ("Device use", (("device_use", "busy"), ("mfu", "needed products")), "per cent of the time", 100),
)
"""Title, (key, name) of each line, unit, and factor from what is logged to the unit."""
AXES = frozenset({"step", "epoch", "seconds"})


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a metrics.jsonl, and how many of them cannot be read, as the last one of a run that was killed.

    Raises:
        OSError: there is no such file.
    """
    lines, broken = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if text.strip():
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if isinstance(value, dict) and "step" in value:
                lines.append(value)
            else:
                broken += 1
    return lines, broken


def read_log(run: Path) -> tuple[list[dict[str, float]], int]:
    """The numbers alone of `read_lines`, from a run's folder.

    Raises:
        OSError: there is no such file.
    """
    lines, broken = read_lines(run / layout.LOG)
    return [
        {key: float(value) for key, value in line.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        for line in lines
    ], broken


def points(lines: Sequence[Mapping[str, float]], key: str, factor: float) -> list[tuple[float, float]]:
    """(step, value in the unit) of the lines that have both."""
    return [(line["step"], line[key] * factor) for line in lines if key in line and "step" in line]
