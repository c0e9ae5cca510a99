"""How much memory there is, and on which kind of device."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_ft.errors import UsageError
from lightning_ft.run import memory

if TYPE_CHECKING:
    from lightning_ft.config import Master, Precision
    from lightning_ft.run.hardware import Formats

Device = Literal["cpu", "gpu"]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?)b\s*", re.IGNORECASE)


def parse_memory(text: str) -> int:
    """Bytes of `24GB` (10**9 each), `24GiB` (2**30 each), `80 gb`, `512MB`.

    Raises:
        UsageError: it is no size above 0, or has no unit.
    """
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size <= 0:
        raise UsageError(f"Expected --memory to be a size above 0 with its unit, as 24GB or 24GiB; got '{text}'.")
    return size


def show_memory(size: float) -> str:
    """Three digits and the unit, of 10**9 or 10**6 bytes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def default_device() -> Device:
    """A GPU where there is one."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def machine_memory(device: Device) -> int:
    """Bytes of the first GPU, or of the machine; where a container's limit is lower, that.

    Raises:
        UsageError: the device is not here, so its memory has to be said.
    """
    if device == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("Expected --memory with --device gpu on a machine without a GPU, as 24GB; got none.")
        return int(torch.cuda.get_device_properties(0).total_memory)
    total = memory.machine_memory()
    if total is None:
        raise UsageError("Expected --memory on this system, which does not tell how much it has; got none.")
    return total


def resident() -> int:
    """Bytes that this process has in memory now; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True)
class Target:
    """What is planned for."""

    device: Device
    memory: int
    """Bytes."""
    precision: Precision
    master: Master = "fp32"
    """`--master_weights`, for methods that train base weights."""

    def formats(self, *, trains_base: bool) -> Formats:
        """The number formats that a run has there."""
        import torch

        from lightning_ft.run.hardware import Formats, formats

        if self.device == "cpu" or torch.cuda.is_available():
            return formats(self.precision, trains_base=trains_base, master=self.master if trains_base else "fp32")
        # A GPU that is not here: as the core chooses on one that computes bfloat16 fast.
        low = torch.float16 if self.precision == "fp16" else torch.bfloat16
        name = "16-mixed" if self.precision == "fp16" else "bf16-mixed"
        if self.precision == "fp32":
            return Formats(torch.float32, "32-true", "precision: fp32")
        if trains_base and self.master != "fp32":
            return Formats(low, "32-true", "precision: bf16")
        return Formats(torch.float32 if trains_base else low, name, f"precision: {name}")
