"""`doctor`: what this machine can do, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_ft.cli.parser import command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST_DISK = 2 << 30
"""Free bytes below which a run is likely to fail at a save."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    state: Literal["ok", "note", "wrong"]
    detail: str
    mend: str | None = None
    """What to type."""


def main(argv: Sequence[str]) -> int:
    """Print the report; exit code 1 when something is wrong."""
    parser = command("doctor", "Show versions, devices, memory, disk and plugins; exit code 1 when something is wrong.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    findings = list(examine())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:<5}  {finding.what:<16} {finding.detail}")
            if finding.mend:
                print(f"{'':<24}mend: {finding.mend}")
    wrong = sum(finding.state == "wrong" for finding in findings)
    if not arguments.json:
        print("Everything that a run needs is here." if not wrong else f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong.")
    return 1 if wrong else 0


def examine() -> Iterator[Finding]:
    """All findings, the packages first: what comes later may need them."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable} on {platform.platform(terse=True)}")
    packages = list(requirements("lightning-ft"))
    yield from packages
    if all(finding.state != "wrong" for finding in packages if finding.what == "torch"):
        yield from _devices()
    yield _memory()
    yield _disk()
    yield from _embedded()
    yield from _plugins()
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "on", "yes")
    yield Finding(
        "hub",
        "ok",
        "offline (HF_HUB_OFFLINE is set)" if offline else "hub ids are downloaded; files and folders need no network",
    )


def requirements(name: str) -> Iterator[Finding]:
    """Each package that a distribution requires, against its version window."""
    from packaging.requirements import Requirement

    try:
        required = distribution(name).requires or []
    except PackageNotFoundError:
        yield Finding(name, "wrong", "not installed, only imported", f"{sys.executable} -m pip install -e .")
        return
    yield Finding(name, "ok", version(name))
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        mend = f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, "wrong", f"missing; {name} needs {requirement.specifier or 'any version'}", mend)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "ok", found)
        else:
            yield Finding(requirement.name, "wrong", f"{found}; {name} needs {requirement.specifier}", mend)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways; each of them is the finding
        mend = f"{sys.executable} -m pip install --force-reinstall torch"
        yield Finding("torch import", "wrong", f"{type(error).__name__}: {error}", mend)
        return
    from lightning_ft.run.hardware import bf16_is_fast, device_name

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            yield Finding(f"gpu {i}", "ok", f"{torch.cuda.get_device_name(i)}, {_size(free)} of {_size(total)} free")
    else:
        built = "" if torch.version.cuda is None else f"; torch is built for CUDA {torch.version.cuda}, but finds no GPU"
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            mend = f"{sys.executable} -m pip install --upgrade torch, in the build for your CUDA version (nvidia-smi shows it)"
            yield Finding("gpu", "note", "a driver is here, but torch is built without CUDA", mend)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("cpu", "ok", f"{device_name()}, {cores} cores, {torch.get_num_threads()} threads used{built}")
    fast = bf16_is_fast()
    yield Finding("bf16", "ok", "fast: --precision auto takes it" if fast else "slow here: --precision auto takes fp32")
    if fast and not torch.cuda.is_available():
        yield _kernels()


def _kernels() -> Finding:
    from lightning_ft.engine.matrix_units import work
    from lightning_ft.engine.native_kernels import SWITCH, library

    if library() is not None:
        return Finding("kernels", "ok", f"compiled for this processor{', with its matrix units' if work() else ''}")
    if os.environ.get(SWITCH) == "off":
        return Finding("kernels", "ok", f"off ({SWITCH} is set)")
    return Finding(
        "kernels", "note", "no C compiler that works: steps take about a fifth longer", "install gcc (Debian: apt install gcc)"
    )


def _memory() -> Finding:
    from lightning_ft.run.memory import machine_memory

    total = machine_memory()
    if total is None:
        return Finding("memory", "note", "this system does not tell how much it has")
    return Finding(
        "memory", "ok", f"{_size(total)}: adapters on fp32 weights fit up to about {total / 5e9:.1f} billion parameters"
    )


def _disk() -> Finding:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding(
            "disk", "wrong", f"{folder} cannot be written, and runs/ goes there", "cd to a folder of yours, or use --output"
        )
    if free < LEAST_DISK:
        return Finding("disk", "wrong", f"{_size(free)} free at {folder}", "free space, or use --output on another disk")
    return Finding("disk", "ok", f"{_size(free)} free at {folder}")


def _embedded() -> Iterator[Finding]:
    assets = Path(__file__).parents[1] / "assets"
    missing = [name for name in ("base/model.safetensors", "data/support.jsonl") if not (assets / name).is_file()]
    if missing:
        mend = f"{sys.executable} -m pip install --force-reinstall --no-deps lightning-ft"
        yield Finding("embedded model", "wrong", f"missing: {', '.join(missing)}", mend)
    else:
        yield Finding("embedded model", "ok", "here; `lightning-ft quickstart` trains it")


def _plugins() -> Iterator[Finding]:
    from lightning_ft.cli.plugins import listing
    from lightning_ft.errors import LightningFTError

    try:
        listed = listing(check=True)
    except LightningFTError as error:
        yield Finding("plugins", "wrong", str(error))
        return
    seen = set()
    for line in listed:
        count = sum(map(len, line.brings.values()))
        if line.state == "broken":
            mend = f"{sys.executable} -m pip install --force-reinstall {line.distribution}"
            yield Finding(
                f"plugin {line.name}", "wrong", line.error or "broken", f"{mend}, or pip uninstall {line.distribution}"
            )
        elif line.name != "-":
            detail = f"{line.distribution} {line.version}: {count} classes" if line.state == "enabled" else "disabled"
            yield Finding(f"plugin {line.name}", "ok", detail)
        if line.distribution not in seen:
            seen.add(line.distribution)
            yield from (f for f in requirements(line.distribution) if f.state == "wrong")


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
