"""What the machine can do, and the number formats that follow from it."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_ft.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from lightning_ft.config import Master, Precision

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor flags with which oneDNN multiplies bfloat16 matrices in hardware."""


@dataclass(frozen=True)
class Formats:
    """Number formats of a run."""

    weights: torch.dtype
    """Of the backbone's weights; parameters that train are kept in float32 beside it."""
    lightning: str
    """Lightning's name for the arithmetic."""
    sentence: str
    """For the log."""
    gathered_in: torch.dtype | None = None
    """What float32 parameters that are spread over processes (FSDP2) are gathered in; None: as they are."""

    @property
    def sharded(self) -> Formats:
        """The same policy for parameters that are spread over processes."""
        low = {"bf16-mixed": torch.bfloat16}.get(self.lightning)
        return self if low is None else replace(self, lightning="32-true", gathered_in=low)


@functools.cache
def bf16_is_fast() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here; measured once where flags do not tell."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
        return not BF16_FLAGS.isdisjoint(flags)
    except (OSError, StopIteration):
        return _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(512, 512, dtype=dtype)
    a @ a
    start = time.perf_counter()
    for _ in range(4):
        a @ a
    return time.perf_counter() - start


def formats(precision: Precision, *, trains_base: bool, master: Master = "fp32") -> Formats:
    """The formats for a run.

    With frozen base weights bf16 means bf16 weights and float32 adapters; on a CPU no autocast is needed for that, and
    it would cost a cast of every weight in every step. Where base weights train they stay float32 under autocast, but for other
    `master` weights.

    Raises:
        UsageError: fp16 without a GPU (torch would silently compute in bf16 instead), or master weights that nothing reads.
    """
    gpu = torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise UsageError("Expected a GPU for --precision fp16, found none; type --precision bf16 or fp32.")
    chosen = precision if precision != "auto" else ("bf16" if bf16_is_fast() else "fp32")
    why = "" if precision != "auto" else " (fast on this machine)" if chosen == "bf16" else " (no fast bf16 on this machine)"
    if master != "fp32" and not (trains_base and chosen == "bf16"):
        got = f"--precision {chosen}{why}" if trains_base else "a method beside frozen base weights"
        raise UsageError(
            f"Expected --precision bf16 and a method that trains base weights with --master_weights {master}, got {got}; leave "
            "--master_weights out."
        )
    if chosen == "fp32":
        return Formats(torch.float32, "32-true", f"precision: fp32{why}")
    low = torch.bfloat16 if chosen == "bf16" else torch.float16
    if trains_base and master != "fp32":
        held = "their lower 16 bits in the optimiser" if master == "split" else "no wider ones beside"
        return Formats(low, "32-true", f"precision: bf16 weights, {held}{why}")
    if trains_base:
        return Formats(
            torch.float32, f"{'bf16' if chosen == 'bf16' else '16'}-mixed", f"precision: {chosen} over fp32 weights{why}"
        )
    if gpu:
        name = "bf16-mixed" if chosen == "bf16" else "16-mixed"
        return Formats(low, name, f"precision: {chosen} weights, fp32 adapters, {chosen} arithmetic{why}")
    return Formats(low, "32-true", f"precision: {chosen} base weights, fp32 adapters{why}")


def device_name() -> str:
    """The accelerator's or the processor's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    try:
        line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return line.split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return "CPU"


def place(model: torch.nn.Module, device: torch.device) -> None:
    """Put a model on a device, and let kernels of our own start there.

    Raises:
        TrainingError: its weights alone are more than the device's memory.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        raise TrainingError(
            f"The model's weights take {size / 2**30:.1f} GiB, more than is free on the {device_name()}; take a smaller model "
            "with --model, end what else runs there, or type --precision bf16 if it is not the precision already."
        ) from error


def device_use(cpu_seconds: float, seconds: float) -> float | None:
    """How busy the device is, from 0 to 1; None where that cannot be asked.

    Of a GPU the driver's figure for the last moments, which needs the package nvidia-ml-py. Of a CPU the share of the time of
    all of torch's threads.

    Args:
        cpu_seconds: What the process was given of the processor, all threads together.
        seconds: In so much time.
    """
    if not torch.cuda.is_available():
        return min(1.0, cpu_seconds / (seconds * torch.get_num_threads())) if seconds else None
    try:
        return torch.cuda.utilization() / 100
    except Exception:  # the driver's library has errors of its own, as where a GPU is a part of one
        return None


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew; where the system does not allow it, the peak stays that of everything so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak becomes what is resident now


def peak_memory() -> int:
    """Peak memory so far in bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
