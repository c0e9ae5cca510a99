"""From the account of a step to the memory that a process takes, part by part, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lightning_ft_plan.hollow import ACTIVATIONS, LOGITS, PARTS, WEIGHTS
from lightning_ft_plan.scene import PACKING, START

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.quantization import Quantization
    from lightning_ft_plan.machine import Device
    from lightning_ft_plan.scene import Account

Verdict = Literal["fits", "tight", "does not fit"]
RUNTIME = "runtime"
"""Memory of a process that no tensor of the model or of the step accounts for."""
TIGHT = 0.85
"""Share of the memory from which on a prediction, which may be 15 % too low, is no promise."""
TIGHT_MEASURED = 0.95
"""The same of a measurement."""
HOLES = 0.35
"""On a CPU: holes in a heap that is kept from step to step, as a share of what comes and goes in a step. Found by
measuring LoRA, full fine-tuning and bases of few bits with 512 to 4,096 tokens over 24 steps: 0.2 to 0.5."""
KERNELS, FEW, FURTHER = 8 * 10**6, 40, 44 * 10**5
"""On a CPU: bytes of compiled products and their buffers that oneDNN keeps for each of so many shapes of a batch, and for each
further one, when its cache is full and only holes remain; measured at 1, 40, 150 and 314 shapes."""
CONTEXT = 600 * 10**6
"""On a GPU: bytes that CUDA, its libraries and their workspaces take of it."""


@dataclass(frozen=True)
class Row:
    """A method in the table."""

    name: str
    """The method's name, with `+ nf4` behind it where the base weights are quantised."""
    method: str
    options: Mapping[str, Any]
    """Options that the user gave."""
    stored: Quantization | None = None
    """How the base weights are quantised; None: they are not."""
    reason: str = ""
    """Why there is no forecast; empty where there is one."""
    trainable: int = 0
    """Numbers that train."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the worst moment by part; they add up to `total`."""
    moment: str = ""
    """When that is."""
    step_seconds: float | None = None
    total_seconds: float | None = None
    measured: bool = False
    """Whether memory and time are the preflight's."""
    predicted: int | None = None
    """Bytes that were predicted, where they were measured after."""
    note: str = ""
    """What has to be known beside."""

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return sum(self.parts.values())

    def verdict(self, memory: int) -> Verdict | None:
        """Against so many bytes; None without a forecast."""
        if not self.parts:
            return None
        if self.total > memory:
            return "does not fit"
        return "tight" if self.total > (TIGHT_MEASURED if self.measured else TIGHT) * memory else "fits"

    def as_dict(self, memory: int) -> dict[str, Any]:
        """Plain values, with the same keys for every row."""
        return {
            "name": self.name, "method": self.method, "options": dict(self.options), "verdict": self.verdict(memory),
            "reason": self.reason or None, "trainable": self.trainable or None, "memory": self.total or None,
            "parts": dict(self.parts), "moment": self.moment or None, "step_seconds": self.step_seconds,
            "total_seconds": self.total_seconds, "measured": self.measured, "predicted": self.predicted,
            "note": self.note or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What a process takes beside the tensors."""

    device: Device
    process: int
    """Bytes with everything imported and the data opened; of a GPU 0."""
    shapes: int
    """Different shapes of batches."""
    reading: int = 0
    """Bytes of the weights' files that are in memory while weights of another type are made of them, with what making them
    takes."""
    chunk: int = 0
    """Bytes that the logits of a chunk take on a GPU beyond those on a CPU."""

    def parts(self, account: Account) -> tuple[str, dict[str, int]]:
        """The worst moment and its bytes by part, those of the process included."""
        moments = {name: self._whole(name, parts) for name, parts in account.windows.items()}
        weights = account.windows["update"][WEIGHTS]
        moments["load"] = {WEIGHTS: round(weights), RUNTIME: self._constant() + self.reading}
        worst = max(moments, key=lambda name: sum(moments[name].values()))
        return worst.partition(",")[0], {part: moments[worst].get(part, 0) for part in (*PARTS, RUNTIME)}

    def _constant(self) -> int:
        if self.device == "gpu":
            return CONTEXT
        return self.process + KERNELS * min(self.shapes, FEW) + FURTHER * max(0, self.shapes - FEW)

    def _whole(self, name: str, parts: Mapping[str, float]) -> dict[str, int]:
        found = {part: round(size) for part, size in parts.items()}
        # The checks come first, when there is no hole yet.
        lively = 0 if name in (PACKING, START) or self.device == "gpu" else found.get(ACTIVATIONS, 0) + found.get(LOGITS, 0)
        if self.device == "gpu" and found.get(LOGITS):
            found[LOGITS] = max(0, found[LOGITS] + self.chunk)
        return {**found, RUNTIME: self._constant() + round(HOLES * lively)}
