from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.run.world import World, check_here, world

LAUNCHERS = (
    "RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(model="m", data=["x"], **values)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, (1, 1)), (3, (3, 3)), ("2", (2, 2)), ("0,1", (2, "0,1")), ("3,", (1, "3,")), ("[0, 2]", (2, "[0, 2]")),
        ("[0]", (1, "[0]")), ([0], (1, "0,")), ([1, 2, 5], (3, "1,2,5,")),
    ],
)  # fmt: skip
def test_forms_of_devices(devices: Any, expected: tuple[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    found = world(config(devices=devices))
    assert (found.size, found.devices, found.rank, found.main) == (*expected, 0, True)


def test_auto_is_every_gpu_or_one_process() -> None:
    there = torch.cuda.device_count() or 1
    assert world(config()) == World(there, there, 0)


@pytest.mark.parametrize("devices", [0, -1, "0", "all", "0;1", "0,x", "", ","])
def test_devices_that_are_none(devices: Any) -> None:
    with pytest.raises(UsageError) as caught:
        world(config(devices=devices))
    assert str(caught.value) == f"Expected --devices to be a number of processes, GPUs as 0,1, or auto; got {devices!r}."


@pytest.mark.parametrize(
    ("devices", "there", "said"),
    [
        ("0,1", 0, "Expected --devices to name GPUs of this machine, which has no GPU; got 0,1."),
        ("[0, 2]", 2, "Expected --devices to name GPUs of this machine, which has GPUs 0 to 1; got [0, 2]."),
        (4, 2, "Expected --devices to be at most 2, the GPUs of this machine; got 4."),
    ],
)
def test_gpus_that_are_not_there(devices: Any, there: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UsageError) as caught:
        check_here(world(config(devices=devices)))
    assert str(caught.value) == said


@pytest.mark.parametrize(("job", "refused"), [("train", True), ("bash", False)])
def test_tasks_of_slurm_that_would_each_train_the_whole_run(job: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": job}.items():
        monkeypatch.setenv(name, value)
    check_here(world(config(devices=1)))  # a batch script, which asked for eight
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    check_here(world(config(devices=2)))
    if refused:
        with pytest.raises(UsageError, match=r"^Expected as many processes as srun has started, 2, got 1: --devices"):
            check_here(world(config(devices=1)))
    else:
        check_here(world(config(devices=1)))


def test_torchrun_says_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = world(config(devices=1))
    assert found == World(8, 4, 5, 1)
    assert not found.main


def test_children_of_lightning_on_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(devices=2, trainer={"num_nodes": 2})
    ranks = []
    for node in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", node)
        for local in (None, "1"):  # the process that was started by hand knows no LOCAL_RANK
            if local:
                monkeypatch.setenv("LOCAL_RANK", local)
            else:
                monkeypatch.delenv("LOCAL_RANK", raising=False)
            assert world(given).size == 4
            ranks.append(world(given).rank)
    assert ranks == [0, 1, 2, 3]


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert world(config(devices=2, trainer={"num_nodes": 2})) == World(4, 2, 3, 1)


@pytest.mark.parametrize(("devices", "index"), [(2, 1), ("3,5", 5), ("[3, 5]", 5), ("auto", 1)])
def test_a_process_computes_where_lightning_puts_it(monkeypatch: pytest.MonkeyPatch, devices: int | str, index: int) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert world(config(devices=devices)).device == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world(config(devices=2)).device == torch.device("cpu")


@pytest.mark.parametrize("nodes", [0, "two", True, None])
def test_nodes_that_are_no_number(nodes: Any) -> None:
    with pytest.raises(UsageError, match=r"^Expected --trainer\.num_nodes to be a number of machines; got "):
        world(config(trainer={"num_nodes": nodes}))
