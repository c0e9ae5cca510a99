"""Runs on real clusters: one of two machines (for Ray) that all tests join, and one that a command starts for itself."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft.cli import main
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.processes import end

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what joins a cluster on 127.0.0.1 has to be there, too
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # fmt: skip
CONFIG = """
model: {model}
data: {data}
output: run
devices: 2
precision: fp32
preflight: false
method: {{name: lora, rank: 4}}
learning_rate: 0.01
batch_size: 4
max_steps: 6
eval_every: 2
keep_best: 9
log_every: 1
verdict_rows: 3
max_new_tokens: 4
dropout: 0.1
seed: 3
"""
TIMES = ("tokens_per_second", "supervised_tokens_per_second", "seconds", "peak_memory", "device_use", "mfu")
"""What two equal runs may differ in."""
FAULTY = '''
"""A plugin that breaks a run: rank, step (1-based), and what happens there."""
import json, os, pathlib, signal, threading

if "LIGHTNING_FT_FAULT" in os.environ and "RANK" in os.environ:
    from lightning_ft.module import FineTuner
    from lightning_ft.run import signals

    rank, at, what, marker = json.loads(os.environ["LIGHTNING_FT_FAULT"])
    original, deliver, delivered, calls = FineTuner.training_step, signals.deliver, threading.Event(), [0]

    def step(self, *args):
        calls[0] += 1
        if calls[0] == at and int(os.environ["RANK"]) == rank:
            if what == "wait":
                delivered.wait(300)
            elif not os.path.exists(marker):
                pathlib.Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    def noted(number):
        taken = deliver(number)
        delivered.set()
        return taken

    FineTuner.training_step, signals.deliver = step, noted
'''
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""For Ray these are two machines, each with room for one worker."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, data, and a config; processes started from here find the plugin that breaks runs."""
    folder = tmp_path_factory.mktemp("ray")
    model, data, faults = tiny_backbone_folder(folder / "model"), folder / "rows.jsonl", folder / "faults"
    rows = [{"instruction": f"Where is order {n}?", "output": f"It is in city {n % 7}."} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "both.yaml").write_text(CONFIG.format(model=model, data=data), encoding="utf-8")
    (faults / "faulty-1.0.dist-info").mkdir(parents=True)
    (faults / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (faults / "faulty-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (faults / "faulty-1.0.dist-info" / "entry_points.txt").write_text("[lightning_ft]\nfaulty = faulty\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(faults), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("LIGHTNING_FT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A cluster of two machines that runs for all tests."""
    with subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            end(process, wait=60.0)  # it ends all that it has started


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    """The run of the config under `fit`, without Ray."""
    folder = place / "plain"
    folder.mkdir()
    argv = [sys.executable, "-m", "lightning_ft", "fit", "--config", str(place / "both.yaml")]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder / "run"


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same(run: Path, other: Path) -> None:
    """The same files, losses, weights and verdict, bit for bit; only times and Lightning's event files are of their own."""
    found = [sorted(str(p.relative_to(r)) for p in r.rglob("*") if "tfevents" not in p.name) for r in (run, other)]
    assert found[0] == found[1]
    assert metrics(run) == metrics(other)
    weights = [name for name in found[0] if name.endswith(".safetensors")]
    assert len(weights) == 8  # final, best, and with their states three checkpoints
    for name in ("config.yaml", "verdict.json", "ledger.json", *weights):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    records = [json.loads((r / "run.json").read_text()) for r in (run, other)]
    for key in ("status", "config_hash", "data", "world_size", "threads", "total_steps", "best_step", "parameters"):
        assert records[0][key] == records[1][key], key


def sentence(err: str) -> str:
    """The last line, which is the only one of its kind."""
    assert "Traceback" not in err
    assert err.count("lightning-ft: ") == 1, err
    return err.strip().splitlines()[-1]


def test_a_killed_worker_ends_with_the_bits_of_fit(
    place: Path, plain: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One config file under both commands, workers on two machines; Ray starts them again, from the checkpoint of step 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_FT_FAULT", json.dumps([1, 3, "kill", str(tmp_path / "killed")]))
    code = main(["ray", "fit", "--config", str(place / "both.yaml"), "--address", address, "--tries", "2"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "ray: the workers were started again (try 2 of 2)\n" in err
    assert "resume: run from checkpoint-step-2\n" in err
    assert err.count("step 2/6  val_loss") == 1
    assert "step 6/6  val_loss" in err
    assert out == (plain.parent / "stdout").read_text()
    assert_same(tmp_path / "run", plain)


def listening(root: int) -> dict[str, list[str]]:
    """Addresses (as /proc/net/tcp has them) on which a process and its descendants listen, by command."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    processes = [root]
    for pid in processes:
        processes += children.get(pid, [])
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    sockets = {f"socket:[{words[9]}]": words[1].partition(":")[0] for words in lines if words[3] == "0A"}
    found: dict[str, list[str]] = {}
    for pid in processes:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        found.setdefault(name, []).extend(sockets[link] for link in links if link in sockets)
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same as an IPv6 address, and ::1."""


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_bits_of_fit_and_nobody_can_reach_its_cluster(
    place: Path, plain: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    fault = {"LIGHTNING_FT_FAULT": json.dumps([0, 3, "wait", ""])}
    argv = [sys.executable, "-m", "lightning_ft", "ray", "fit", "--config", str(place / "both.yaml")]
    argv += ["--cpus_per_worker", "0.5"]  # a machine of one CPU has room for both
    with subprocess.Popen(argv, env=own | fault, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "step 2/6  val_loss" not in said and (line := process.stderr.readline()):
            said += line
        found = listening(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, said + err
    assert out == ""
    assert sentence(err) == ("lightning-ft: Stopped by SIGINT after step 3 of 6; everything is saved. Go on with --resume run.")
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    # Torch's own store of rank 0 listens everywhere, as it does under `fit --devices 2`.
    mine = {name: places for name, places in found.items() if places and "RayTrainWorker" not in name}
    assert len(mine) > 4, found
    assert {place for places in mine.values() for place in places} <= LOOPBACK, mine

    assert main(["ray", "fit", "--resume", "run", "--address", address]) == 0
    out, err = capfd.readouterr()
    assert "resume: run from checkpoint-step-3\n" in err
    assert out == (plain.parent / "stdout").read_text()
    stopped = Path("run/checkpoints/checkpoint-step-3")
    assert not stopped.exists(), "it was neither newest nor among the best"
    assert_same(tmp_path / "run", plain)


def test_wrong_data_is_one_sentence(
    place: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.jsonl").write_text('{"nonsense": 1}\n')
    argv = ["--model", str(place / "model"), "--data", "wrong.jsonl", "--num_workers", "1", "--address", address]
    assert main(["ray", "fit", *argv]) == 2
    out, err = capfd.readouterr()
    assert sentence(err).startswith("lightning-ft: wrong.jsonl: expected the columns of a task")
    assert out == ""
    assert not Path("run").exists()


def test_more_workers_than_there_is_room_for_are_refused(
    place: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ray", "fit", "--config", str(place / "both.yaml"), "--address", address, "--num_workers", "5000"]) == 2
    assert sentence(capfd.readouterr().err) == (
        "lightning-ft: Expected at most 2 workers of 1 CPU each on a cluster of 2 CPUs and 0 GPUs on 2 machines; got 5000; "
        "type --cpus_per_worker 0.5 to let two share one."
    )
    assert not Path("run").exists()
