"""What a result file says of the machine that it was measured on: processor, GPU, and versions of packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "lightning", "transformers", "peft", "datasets", "accelerate", "tokenizers", "trl", "bitsandbytes",
    "litgpt", "liger-kernel", "triton", "lightning-ft",
)  # fmt: skip
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Instructions that multiply bfloat16 matrices; without one of them everybody computes in float32. As in
`lightning_ft.run.hardware`, which imports torch: this runner stays small beside what it measures."""


def versions(python: str) -> dict[str, str]:
    """Python and package versions of an environment."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "known = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{'python': platform.python_version(), **{{n: known[n] for n in {PACKAGES!r} if n in known}}}}))"
    )
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)
    return found


def hardware(threads: int) -> dict[str, Any]:
    """Processor, cores, memory and the instructions that decide the speed of bfloat16; no names of machines."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE)
    known = {"avx2", "avx512f"} | BF16_FLAGS
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model[1].strip() if model else "unknown", "cores": len(os.sched_getaffinity(0)), "threads": threads,
        "memory_gb": round(pages / 2**30, 1), "flags": sorted(known & set(flags[1].split())) if flags else [],
    }  # fmt: skip


def graphics(python: str) -> dict[str, Any] | None:
    """The first GPU's name, memory and driver; None where torch sees none.

    Another process looks, as whoever asks CUDA takes some of the GPU's memory until its end.
    """
    code = (
        "import json, torch\n"
        "found = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None\n"
        "print(json.dumps(found and {'gpu': found.name, 'gpu_memory_gb': round(found.total_memory / 2**30, 1)}))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, Any] | None = json.loads(done.stdout)
    return found and {**found, "gpu_driver": driver_version()}


def driver_version() -> str | None:
    """Version of NVIDIA's driver, by its tool or the kernel's module; None where neither tells."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(asked[0]) and (lines := subprocess.run(asked, capture_output=True, text=True).stdout.split()):
        return lines[0]
    module = Path("/proc/driver/nvidia/version")
    found = re.search(r"Module.*?\s(\d+\.[\d.]+)\s", module.read_text(encoding="utf-8")) if module.is_file() else None
    return found[1] if found else None
