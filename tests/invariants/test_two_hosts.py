"""A run over two hosts, which are network namespaces: one is cut off in the middle, the other says so, and both go on later."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_ft.checkpoint import checkpoints

NAMES, ADDRESSES = ("lft-one", "lft-two"), ("10.77.31.1", "10.77.31.2")
TIMEOUT = 30
"""Seconds of --rank_timeout."""


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    """Two hosts with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (iproute2)")
    try:
        ip(f"netns add {NAMES[0]}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
    try:
        ip(f"netns add {NAMES[1]}")
        ip(f"link add cable0 netns {NAMES[0]} type veth peer name cable0 netns {NAMES[1]}")
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip(f"-n {name} addr add {address}/24 dev cable0")
            ip(f"-n {name} link set cable0 up")
            ip(f"-n {name} link set lo up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Pair:
    """torchrun on both hosts."""

    def __init__(self, words: list[object], folder: Path, environment: Mapping[str, str]) -> None:
        self.logs = [folder / f"{name}_{time.monotonic_ns()}.log" for name in NAMES]
        self.processes = []
        for number, (name, log) in enumerate(zip(NAMES, self.logs, strict=True)):
            launch = [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--node-rank", str(number), "--nproc-per-node", "1", "--master-addr", ADDRESSES[0], "--master-port", "29531",
                "--local-addr", ADDRESSES[number], "-m", "lightning_ft", "fit", *map(str, words), "--trainer.num_nodes", "2",
            ]  # fmt: skip
            own = os.environ | environment | {"GLOO_SOCKET_IFNAME": "cable0", "LIGHTNING_FT_CACHE": str(folder / name)}
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(launch, env=own, stdout=file, stderr=subprocess.STDOUT))

    def wait(self, seconds: float) -> list[int]:
        """Exit codes."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    @property
    def said(self) -> list[str]:
        """What each printed."""
        return [log.read_text() for log in self.logs]


def steps(run: Path) -> int:
    """Steps that are in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.long), "fsdp2"])
def test_a_host_that_is_cut_off(
    strategy: str, hosts: None, tmp_path: Path, plain_backbone: Path, uneven: Path, environment: Mapping[str, str], of_run: Any
) -> None:
    common: list[object] = [
        "--model", plain_backbone, "--data", uneven, "--method", "full", "--batch_size", 4, "--epochs", 10, "--save_every", 5,
        "--eval_every", 1000, "--log_every", 1, "--precision", "fp32", "--verdict_rows", 0, "--preflight", "false",
        "--strategy", strategy, "--rank_timeout", TIMEOUT,
    ]  # fmt: skip
    run = tmp_path / "run"
    pair = Pair([*common, "--output", run], tmp_path, environment)
    begin = time.monotonic()
    while steps(run) < 12 and time.monotonic() < begin + 240:
        assert all(process.poll() is None for process in pair.processes), pair.said
        time.sleep(0.1)
    ip(f"-n {NAMES[1]} link set cable0 down")
    cut = time.monotonic()
    codes = pair.wait(TIMEOUT + 90)
    took = time.monotonic() - cut
    ip(f"-n {NAMES[1]} link set cable0 up")
    assert codes == [1, 1], pair.said
    for said, other in zip(pair.said, (1, 0), strict=True):
        assert re.search(rf"lightning-ft: Rank {other} of 2 does not answer any more .* Go on with --resume {run}", said), said
    assert took < TIMEOUT + 15, "the time-out, and the end of a process on a busy machine"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert checkpoints(run)
    last = steps(run)

    assert last < 50
    again = Pair(["--resume", run], tmp_path, environment)
    assert again.wait(300) == [0, 0], again.said
    assert "resume: " in again.said[0]
    assert steps(run) > last
    assert (run / "final_model" / "model.safetensors").is_file()
