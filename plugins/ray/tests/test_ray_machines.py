"""What is settled before anything runs: who the workers are, whether all machines see the same, and what is refused at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_ray.command import parser, sized
from lightning_ft_ray.machines import Group, Machine, group_of, room
from lightning_ft_ray.survey import Seen, check, look, marker, needed
from lightning_ft_ray.training import environment

from lightning_ft.cli import main
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

SMALL, LARGE = Machine("a", "10.0.0.1", 4, 0), Machine("b", "10.0.0.2", 9, 0)
WITH_GPUS = [Machine("c", "10.0.0.3", 16, 2), Machine("d", "10.0.0.4", 8, 1), SMALL]


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig(**{"model": "m", "data": ["x"], **values})


def group(
    machines: list[Machine], workers: int | None = None, cpus: float | None = None, use_gpu: bool | None = None, **values: Any
) -> Group:
    return group_of(config(**values), machines, workers=workers, cpus=cpus, use_gpu=use_gpu)


def test_room_counts_whole_workers_of_each_machine() -> None:
    """4 // 3 + 9 // 3, and halves: 8 + 18; with GPUs the fewer of both."""
    assert room([SMALL, LARGE], 3, gpu=False) == 4
    assert room([SMALL, LARGE], 0.5, gpu=False) == 26
    assert room([Machine("e", "", 1, 0)], 0.1, gpu=False) == 10
    assert room(WITH_GPUS, 8, gpu=True) == 3
    assert room(WITH_GPUS, 16, gpu=True) == 1


def test_workers_are_those_of_the_flag_or_of_devices_or_what_there_is() -> None:
    assert group([SMALL, LARGE], 3, devices=2) == Group(3, 4, gpu=False)  # 1 on 4 CPUs, 2 on 9
    assert group([SMALL, LARGE], devices=2) == Group(2, 4, gpu=False)
    assert group([SMALL, LARGE], devices=2, trainer={"num_nodes": 3}) == Group(6, 2, gpu=False)
    assert group([SMALL, LARGE]) == Group(2, 4, gpu=False)
    assert group([LARGE]) == Group(1, 9, gpu=False)
    assert group(WITH_GPUS) == Group(3, 8, gpu=True)
    assert group(WITH_GPUS, use_gpu=False) == Group(3, 8, gpu=False)  # 2 on 16, 1 on 8
    assert group(WITH_GPUS, 2).resources == {"CPU": 8, "GPU": 1}


@pytest.mark.parametrize(
    ("machines", "options", "said"),
    [
        ([SMALL], {"workers": 5}, "Expected at most 4 workers of 1 CPU each on a cluster of 4 CPUs and 0 GPUs on 1 machine; "
         "got 5; type --cpus_per_worker 0.5 to let two share one."),
        ([SMALL, LARGE], {"workers": 2, "cpus": 6}, "Expected at most 1 workers of 6 CPUs each on a cluster of 13 CPUs and 0 "
         "GPUs on 2 machines; got 2."),
        (WITH_GPUS, {"workers": 4}, "Expected at most 3 workers of 1 CPU and a GPU each on a cluster of 28 CPUs and 3 GPUs on "
         "3 machines; got 4."),
        ([SMALL], {"use_gpu": True}, "Expected a GPU in the cluster for --use_gpu true, got a cluster of 4 CPUs and 0 GPUs on "
         "1 machine; type --use_gpu false."),
        ([SMALL], {"devices": "0,1"}, "Expected --devices to be auto or a number, as Ray chooses which GPUs they are; got "
         "'0,1'."),
        ([SMALL], {"devices": "many"}, "Expected --devices to be a number of processes, GPUs as 0,1, or auto; got 'many'."),
    ],
)  # fmt: skip
def test_a_cluster_without_room_says_so(machines: list[Machine], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        group(machines, **options)
    assert str(caught.value) == said


def test_the_flag_stands_in_the_config_as_devices() -> None:
    """So that the run is that of `fit --devices 4`, which no machines need to be told of."""
    before = config(devices=2, trainer={"num_nodes": 3, "benchmark": True})
    after, given = sized(before, frozenset({"data"}), 4)
    assert (after.devices, after.trainer, set(given)) == (4, {"benchmark": True}, {"data", "devices"})
    assert sized(before, frozenset({"data"}), None) == (before, frozenset({"data"}))


def test_workers_get_settings_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIGHTNING_FT_CACHE", "LIGHTNING_FT_RUN", "HF_TOKEN", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    on_gpus, on_cpus = (environment(Group(2, 1, gpu=gpu)) for gpu in (True, False))
    assert {"LIGHTNING_FT_CACHE", "OMP_NUM_THREADS"} <= on_gpus.keys()
    assert not {"LIGHTNING_FT_RUN", "HF_TOKEN", "GLIBC_TUNABLES", "CUDA_VISIBLE_DEVICES"} & on_gpus.keys()
    assert on_cpus["CUDA_VISIBLE_DEVICES"] == ""
    assert on_cpus["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.tcache_count=0"


def test_machines_have_to_see_the_same(scratch: Scratch, tmp_path: Path) -> None:
    scratch.write("rows.jsonl", ['{"a": 1}'])
    other = tmp_path / "other"
    other.mkdir()
    asked = config(data=["rows.jsonl", "*.jsonl", "owner/name:train"], model="embedded", output="deep/run")
    assert needed(asked) == ["rows.jsonl"]
    here = look(str(tmp_path), ["rows.jsonl"])
    check(here, here, "10.0.0.2")
    with pytest.raises(UsageError, match=r"to see the same 'rows\.jsonl', but 10\.0\.0\.2 sees nothing there; work in"):
        check(here, look(str(other), ["rows.jsonl"]), "10.0.0.2")
    (other / "rows.jsonl").write_text('{"a": 2}\n')
    with pytest.raises(UsageError, match=r"but 10\.0\.0\.2 sees something else there"):
        check(here, look(str(other), ["rows.jsonl"]), "10.0.0.2")
    with pytest.raises(UsageError, match=r"^Expected torch .* on every machine, as on this one, but 10\.0\.0\.2 has 1\.0; in"):
        check(here, Seen({**here.versions, "torch": "1.0"}, here.files), "10.0.0.2")
    with marker(asked) as mark:
        assert Path(mark).parent == tmp_path
        assert look("/", [mark]).files[mark].startswith("sampled:")
    assert not Path(mark).exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--num_workers", "0"], "Expected --num_workers to be at least 1; got 0."),
        (["--num-workers", "0"], "Expected --num_workers to be at least 1; got 0."),
        (["--num_workers", "two"], "Expected --num_workers to be a whole number; got 'two'."),
        (["--tries", "0"], "Expected --tries to be at least 1; got 0."),
        (["--cpus_per_worker", "inf"], "Expected --cpus_per_worker to be a whole number or a part of 1, as 0.5; got inf."),
        (["--cpus_per_worker", "1.5"], "Expected --cpus_per_worker to be a whole number or a part of 1, as 0.5; got 1.5."),
        (["--use_gpu", "yes"], "Expected --use_gpu to be one of true, false; got 'yes'."),
        (["--num_workers", "2", "--devices", "2"], "Expected either --num_workers or --devices, got 2 and 2."),
        (["--num_worker", "2"], "Expected a flag of `lightning-ft ray fit --help` or of `fit`, got '--num_worker'. Did you "
         "mean '--num_workers'?"),
        (["--max-stepz=2"], "Expected a flag of `lightning-ft ray fit --help` or of `fit`, got '--max-stepz'. Did you mean "
         "'--max_steps'?"),
        (["--address", "ray://host:10001"], "Expected --address to be local, auto, or host:port of a running cluster; got "
         "'ray://host:10001'."),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused_at_once(
    argv: list[str], said: str, scratch: Scratch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ray", "fit", "embedded", "--data", scratch.write("rows.jsonl", ['{"a": 1}']), *argv]) == 2
    assert capsys.readouterr().err == f"lightning-ft: {said}\n"


def test_an_address_where_nobody_answers_is_refused_at_once(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # bound and not listening: the port is nobody else's
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert main(["ray", "fit", "embedded", "--data", scratch.write("r.jsonl", ['{"a": 1}']), "--address", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lightning-ft: Expected a Ray cluster at --address {address}, but ")
    assert said.count("\n") == 1


def test_words_beside_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", "fti"]) == 2
    assert "got 'ray fti'. Did you mean 'fit'?" in capsys.readouterr().err
    assert main(["ray"]) == 0
    assert "Usage: lightning-ft ray fit" in capsys.readouterr().out
    assert main(["ray", "fit", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(flag in out for action in parser()._actions for flag in action.option_strings)


def test_without_ray_it_says_what_to_install(
    scratch: Scratch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["ray", "fit", "embedded", "--data", scratch.write("rows.jsonl", ['{"a": 1}'])]) == 2
    assert capsys.readouterr().err == (
        "lightning-ft: Expected Ray with Ray Train, but it is not installed; type pip install 'ray[train]', or use "
        "`lightning-ft fit` without it.\n"
    )


LIGHT = """
import sys
from lightning_ft.cli import main
main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "argv", [["--help"], ["ray", "fit", "--help"], ["ray", "fit", "embedded", "--data", "x", "--seed", "-1"]]
)
def test_nothing_imports_ray_before_it_is_needed(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"ray", "torch", "lightning"} & set(done.stderr.splitlines()[-1].split())
