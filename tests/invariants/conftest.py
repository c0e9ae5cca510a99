"""What the invariants share: a tiny backbone with dropout, rows of very uneven lengths, and runs that can be killed."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_ft.testing.processes import end

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
"""One thread: sums of several threads depend on who finishes first."""
TIMES = ("tokens_per_second", "supervised_tokens_per_second", "seconds", "peak_memory", "device_use", "mfu")
"""What two equal runs may differ in."""


@dataclass(frozen=True)
class Ended:
    """A process that came to its end."""

    status: int
    """Exit code, or minus the signal."""
    log: str
    operations: int | None = None
    """Changes to files in the run folder, where it was counted to the end."""

    def ended(self, status: int = 0) -> "Ended":
        """Itself, if it ended so."""
        assert self.status == status, self.log
        return self


class Forks:
    """Runs of the command line, each in a process of its own that does not have to import torch first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | ENVIRONMENT | {"LIGHTNING_FT_CACHE": str(folder / "cache")},
        )  # fmt: skip

    def __call__(
        self, *argv: object, folder: Path, hit: Mapping[str, tuple[float, int]] | None = None, processes: int = 1,
        short: Mapping[str, object] | None = None,
    ) -> Ended:  # fmt: skip
        """`lightning-ft ARGV`, in so many processes; `hit` and `short` as in forks.py, operations being counted in `folder`."""
        self.number += 1
        log = self.folder / f"log_{self.number}.txt"
        words = [str(word) for word in argv]
        request: dict[str, Any] = {"argv": words, "folder": str(folder), "log": str(log), "hit": hit or {}}
        request |= {"processes": processes, "short": short}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError("the server of runs ended; its own output says why")
        answer = json.loads(line)
        return Ended(answer["status"], log.read_text(), answer["operations"])

    def close(self) -> None:
        """End the server."""
        end(self.server)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """The server of runs."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose attention drops a tenth."""
    from lightning_ft.testing.models import tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("backbone")
    model = tiny_llama()
    model.config.attention_dropout = 0.1
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama without dropout."""
    from lightning_ft.testing.models import tiny_backbone_folder

    return tiny_backbone_folder(tmp_path_factory.mktemp("plain_backbone"))


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 training rows of 50 to 200 tokens with 2 to 93 supervised ones, 5 validation rows, 2 test rows.

    Eight rows make a step, so that the last step of an epoch has one row.
    """
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for i in range(48):
            row = {
                "instruction": f"Say {i} " + "".join(draw.choices("abc ", k=draw.choice([0, 3, 60]))),
                "input": "",
                "output": "".join(draw.choices("xyz ", k=draw.choice([0, 1, 10, 90]))) + str(i),
                "split": "train" if i < 41 else "validation" if i < 46 else "test",
            }
            file.write(json.dumps(row) + "\n")
    return path


def weights(run: Path, folder: str = "final_model") -> dict[str, torch.Tensor]:
    """The tensors that a run left."""
    files = [p for p in (run / folder).glob("*.safetensors") if p.name != "trainer_state.safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


@pytest.fixture(scope="session")
def of_run() -> Any:
    """Functions that read a run folder: `weights`, `lines`."""

    class OfRun:
        weights = staticmethod(weights)
        lines = staticmethod(lines)
        seconds = staticmethod(lambda run: json.loads((run / "run.json").read_text())["train_seconds"])

    return OfRun


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For runs in processes of their own."""
    return ENVIRONMENT | {"LIGHTNING_FT_CACHE": str(tmp_path_factory.mktemp("cache"))}
