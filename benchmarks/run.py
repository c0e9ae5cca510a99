"""Run a suite: every contestant in a fresh process, round after round in turn (A B C A B C ...), one result file.

`python -m benchmarks.run cpu_sft` (or `make bench SUITE=cpu_sft`). Wall time and peak memory are taken from outside, by
the kernel's account of the process; examples per second are clocked inside, at the optimiser steps.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import BF16_FLAGS, graphics, hardware, versions

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
SCHEMA = 1
FORGOTTEN = re.compile(
    r"^(OMP|MKL|KMP|GOMP|MALLOC|GLIBC|LIGHTNING_FT|PYTEST|PYTORCH)_|^(LD_PRELOAD|TOKENIZERS_PARALLELISM|PYTHONPATH)$"
)
"""Variables of the caller that would favour or hinder somebody."""
GENERATED = ("benchmarks.generated", "benchmarks.scaling", "benchmarks.vocab")
"""The builders of settings that read no data."""
FIELDS = {"module", "command", "venv", "args", "env", "exit_code", "needs"}
"""What a suite may say of a contestant. `env`: variables that its user would set, for it alone; `needs: bf16`: it is left out
where the processor has no fast bfloat16."""


@dataclass(frozen=True)
class Suite:
    """A file of `suites/`, checked."""

    name: str
    title: str
    rounds: int
    contestants: dict[str, dict[str, Any]]
    targets: list[dict[str, Any]]
    setting: dict[str, Any] | None = None
    needs: str | None = None
    """What the machine must have: `gpu`, or nothing beside a processor."""
    least_gpu_gb: float = 0.0
    """Memory (of 2**30 bytes) below which the GPU cannot run it."""

    @classmethod
    def load(cls, name: str) -> Suite:
        """The suite of that name.

        Raises:
            ValueError: there is none, or it says something that cannot be run.
        """
        path = HERE / "suites" / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise ValueError(f"Expected a suite ({known}), got '{name}'.")
        suite = cls(name=name, **yaml.safe_load(path.read_text(encoding="utf-8")))
        if suite.needs not in (None, "gpu"):
            raise ValueError(f"{path}: expected needs to be gpu, got {suite.needs}.")
        for contestant, spec in suite.contestants.items():
            if ("module" in spec) == ("command" in spec) or set(spec) - FIELDS or spec.get("needs") not in (None, "bf16"):
                raise ValueError(f"{path}: expected contestant {contestant} to have either a module or a command, got {spec}.")
        for target in suite.targets:
            if {target["of"], target.get("over", target["of"])} - set(suite.contestants):
                raise ValueError(f"{path}: target {target} names an unknown contestant.")
            if len({"at_least", "at_most", "within"} & set(target)) != 1:
                raise ValueError(f"{path}: expected one of at_least, at_most, within in {target}.")
        return suite

    def without(self, missing: set[str]) -> Suite:
        """The suite without the contestants that need what this machine lacks, and without targets that name them."""
        kept = {name: spec for name, spec in self.contestants.items() if spec.get("needs") not in missing}
        return replace(
            self, contestants=kept, targets=[t for t in self.targets if {t["of"], t.get("over", t["of"])} <= set(kept)]
        )


@dataclass(frozen=True)
class Bench:
    """Where things lie, and who runs."""

    suite: Suite
    pythons: dict[str, str]
    """Interpreter of each environment: `main`, and those of files beside this one, as `peers`."""
    work: Path
    data: Path | None
    threads: int
    timeout: float
    bf16: bool = True
    """Whether bfloat16 is fast here: a peer's best setting is in the format that its user would take on this machine."""

    def environment(self, number: int) -> dict[str, str]:
        """The same variables for every contestant: nothing tuned, no network, caches that are new in each round."""
        kept = {key: value for key, value in os.environ.items() if not FORGOTTEN.match(key)}
        if self.suite.needs == "gpu" and "PYTHONPATH" in os.environ:
            # One interpreter for all, on a machine that is often not one's own: its packages may lie in a folder beside it.
            kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
        caches = self.work / f"caches_{number}"
        own = {
            "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(caches / "datasets"),
            "XDG_CACHE_HOME": str(caches / "xdg"), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return {**kept, **own}

    def build_setting(self, overrides: dict[str, Any]) -> dict[str, Any] | None:
        """Write the suite's setting folder; what was counted comes back."""
        if self.suite.setting is None:
            return None
        options = {**self.suite.setting, "bf16": self.bf16, **overrides}
        module = options.get("build", "benchmarks.setting")
        if self.data is None and module not in GENERATED:
            raise ValueError("Expected the folder of public data sets: type --data FOLDER or set LIGHTNING_FT_DATA.")
        call = f"import {module} as m, json, sys, pathlib as p; m.build(json.loads(sys.argv[1]), *map(p.Path, sys.argv[2:]))"
        data = str(self.data or os.devnull)
        command = [self.pythons["main"], "-c", call, json.dumps(options), data, str(self.work / "setting")]
        subprocess.run(command, check=True, cwd=ROOT, env=self.environment(0), stdout=subprocess.DEVNULL)
        facts: dict[str, Any] = json.loads((self.work / "setting" / "setting.json").read_text(encoding="utf-8"))
        return facts

    def measure(self, contestant: str, number: int) -> dict[str, Any]:
        """One contestant once: its own numbers, wall seconds and peak memory."""
        spec = self.suite.contestants[contestant]
        out = self.work / self.suite.name / f"round_{number}" / contestant
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        load = os.getloadavg()[0]
        environment = {**self.environment(number), **spec.get("env", {})}
        status, wall, peak = self._process(self._command(spec, out, number), out, environment)
        if status != spec.get("exit_code", 0):
            log = (out / "log.txt").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{contestant} ended with {status} in round {number}:\n{log[-3000:]}")
        metrics: dict[str, Any] = {"wall_s": wall, "peak_mb": peak}
        if (out / "measure.json").is_file():
            metrics |= json.loads((out / "measure.json").read_text(encoding="utf-8"))
        if trained := metrics.pop("trained", None):
            metrics |= self.score(trained)
        steps = {"steps_ms": metrics.pop("steps_ms")} if "steps_ms" in metrics else {}
        return {"round": number, "contestant": contestant, "load_before": load, "metrics": metrics, **steps}

    def score(self, *trained: str) -> dict[str, float]:
        """What an adapter or a model (without one: the untrained model) makes of the held-out rows, by one script for all."""
        command = [self.pythons["main"], "-m", "benchmarks.score", str(self.work / "setting"), *trained]
        done = subprocess.run(command, check=True, cwd=ROOT, env=self.environment(0), capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def _command(self, spec: dict[str, Any], out: Path, number: int) -> list[str]:
        """What starts a contestant; `{out}` and `{round}` stand for its folder and the round's number, its seed."""
        python = self.pythons[spec.get("venv", "main")]
        given = [str(part).format(out=out, round=number) for part in spec.get("args", [])]
        if "module" in spec:
            setting = [str(self.work / "setting")] if self.suite.setting else []
            # -m: a script's own folder would come first on the path, and trl.py would be imported for the package trl.
            return [python, "-m", spec["module"], *setting, str(out), *given]
        name, *rest = (part.format(out=out, round=number) for part in spec["command"])
        return [str(Path(python).with_name(name)), *rest]

    def _process(self, command: list[str], out: Path, environment: dict[str, str]) -> tuple[int, float, float]:
        """Exit code, wall seconds, and peak resident memory in MB of a process."""
        with (out / "log.txt").open("wb") as log:
            begin = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            watch = threading.Timer(self.timeout, process.kill)
            watch.start()
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - begin
            watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 took it, so Popen cannot find it any more
        return process.returncode, wall, usage.ru_maxrss / 1024


def peers_python(name: str, venv: Path) -> str:
    """The interpreter of the environment of that name, made from NAME.txt where it is missing or out of date."""
    packages = HERE / f"{name}.txt"
    wanted = packages.read_text(encoding="utf-8")
    stamp = venv / f"{name}.sha256"
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    python = venv / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == digest):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
        for what in ([torch], [torch, "-r", str(packages)]):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *what], check=True)
        stamp.write_text(digest, encoding="utf-8")
    return str(python)


def revision() -> str | None:
    """The commit that is measured, with `+` where files differ from it."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() + ("+" if changed.stdout.strip() else "")


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(rounds: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each contestant's metrics over the rounds."""
    found: dict[str, dict[str, list[float]]] = {}
    for entry in rounds:
        for metric, value in entry["metrics"].items():
            found.setdefault(entry["contestant"], {}).setdefault(metric, []).append(value)
    return {name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in found.items()}


def ratios(rounds: list[dict[str, Any]], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every target that compares two contestants: the ratio in each round, and its spread."""
    table = {(entry["round"], entry["contestant"]): entry["metrics"] for entry in rounds}
    numbers = sorted({number for number, _ in table})
    found = []
    for target in targets:
        pairs = [(table.get((n, target["of"])), table.get((n, target.get("over", "")))) for n in numbers]
        metric = target["metric"]
        # What a contestant could not measure is missing, and the target then not met.
        values = [of[metric] / over[metric] for of, over in pairs if of and over and metric in of and metric in over]
        if values:
            key = {name: target[name] for name in ("metric", "of", "over")}
            found.append({**key, "per_round": values, **spread(values)})
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the suite that the command line names and write its result file."""
    arguments = parse(argv)
    overrides = {key: int(value) for key, value in (pair.split("=", 1) for pair in arguments.set)}
    try:
        suite = Suite.load(arguments.suite)
        gpu = graphics(sys.executable) if suite.needs == "gpu" else None
        if suite.needs == "gpu" and gpu is None:
            print(f"skipped: {suite.name} needs an NVIDIA GPU, none is here")
            return 0
        if gpu and gpu["gpu_memory_gb"] < suite.least_gpu_gb:
            has = f"this {gpu['gpu']} has {gpu['gpu_memory_gb']:g}"
            print(f"skipped: {suite.name} needs a GPU with {suite.least_gpu_gb:g} GiB of memory, {has}")
            return 0
        result = run(suite, arguments, overrides, gpu or {})
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    target = arguments.output or HERE / "results" / file_name(result)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {target}")
    from benchmarks import report

    held = report.main([str(target)])
    return 1 if result["failed"] else held


def file_name(result: dict[str, Any]) -> str:
    """Of the result file: suite, the GPU or else the processor and its cores, date."""
    hardware = result["hardware"]
    machine = hardware.get("gpu") or f"{hardware['cpu']}-{hardware['cores']}c"
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    return f"{'' if result['complete'] else 'trial_'}{result['suite']}_{slug}_{result['date'][:10]}.json"


def run(suite: Suite, arguments: argparse.Namespace, overrides: dict[str, Any], gpu: dict[str, Any]) -> dict[str, Any]:
    """All rounds of a suite, on a GPU where it needs one; the result file's content."""
    threads = arguments.threads or len(os.sched_getaffinity(0))
    machine = hardware(threads) | gpu
    bf16 = bool(gpu or BF16_FLAGS & set(machine["flags"]))
    whole, suite = suite, suite if bf16 else suite.without({"bf16"})
    chosen = arguments.only.split(",") if arguments.only else list(suite.contestants)
    if unknown := set(chosen) - set(suite.contestants):
        raise ValueError(f"Expected --only to name contestants of {suite.name}, got {', '.join(sorted(unknown))}.")
    pythons = {"main": sys.executable}
    for venv in sorted({suite.contestants[name]["venv"] for name in chosen if "venv" in suite.contestants[name]}):
        folder = arguments.peers_venv
        # Others than the peers' lie beside it.
        pythons[venv] = peers_python(venv, folder if venv == "peers" else folder.with_name(f"{folder.name}-{venv}"))
    number_of_rounds = arguments.rounds or suite.rounds
    work = arguments.keep.resolve() if arguments.keep is not None else Path(tempfile.mkdtemp(prefix="benchmark-"))
    for caches in work.glob("caches_*"):
        shutil.rmtree(caches)
    try:
        bench = Bench(suite, pythons, work, arguments.data, threads, arguments.timeout, bf16)
        setting = bench.build_setting(overrides)
        untrained = bench.score() if setting and "heldout_rows" in setting else None
        rounds: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        for number in range(1, number_of_rounds + 1):
            for contestant in chosen:
                if contestant in failed:
                    continue
                try:
                    rounds.append(bench.measure(contestant, number))
                except RuntimeError as error:  # what the others take hours or a lent machine for is not lost with it
                    failed[contestant] = str(error)
                    print(f"round {number}/{number_of_rounds}  {contestant}: failed: {error}", flush=True)
                    continue
                numbers = "  ".join(f"{key} {value:.4g}" for key, value in rounds[-1]["metrics"].items())
                print(f"round {number}/{number_of_rounds}  {contestant}: {numbers}", flush=True)
    finally:
        if arguments.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    return {
        "schema": SCHEMA, "suite": suite.name, "title": suite.title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "revision": revision() or arguments.revision,
        # Only a complete run may be compared with the targets.
        "complete": not (overrides or arguments.only or arguments.threads or failed) and number_of_rounds >= suite.rounds,
        "hardware": machine, "versions": {name: versions(python) for name, python in pythons.items()},
        "setting": setting, "untrained": untrained, "contestants": {name: suite.contestants[name] for name in chosen},
        "rounds": rounds, "summary": summarise(rounds), "ratios": ratios(rounds, suite.targets), "targets": suite.targets,
        "left_out": sorted(set(whole.contestants) - set(suite.contestants)), "failed": failed,
    }  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    data = os.environ.get("LIGHTNING_FT_DATA", ROOT.parent / "shared" / "data")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Run a suite of benchmarks/suites.")
    parser.add_argument("suite", help="name of a file of benchmarks/suites, without .yaml")
    parser.add_argument("--rounds", type=int, help="instead of the suite's number")
    parser.add_argument("--only", help="some contestants, by comma; such a result is a trial")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=N", help="another number in the setting; a trial")
    parser.add_argument("--threads", type=int, help="computing threads of all contestants (default: one per core); a trial")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a contestant is stopped")
    parser.add_argument("--data", type=Path, default=Path(data) if Path(data).is_dir() else None, help="public data sets")
    parser.add_argument(
        "--peers-venv", type=Path, default=HERE / ".venv-peers", help="environment of the peers; LitGPT's is FOLDER-litgpt"
    )
    parser.add_argument("--revision", help="the commit that is measured, where there is no repository to ask")
    parser.add_argument("--keep", type=Path, help="a folder for setting, logs and what contestants write, which stays")
    parser.add_argument("--output", type=Path, help="the file to write instead of one in benchmarks/results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
