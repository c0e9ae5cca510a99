"""Several processes on a CPU train what one does: ddp, fsdp2, tp, fsdp2_tp; and a run goes on with another number of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_ft.testing.runs import stopped_at

CLIPPED = 0.1
"""Norm that every gradient here is above, so that all strategies have to clip alike."""
# Eight rows a step however many see them. With so large an eps Adam does not make a large step of a gradient that is rounding.
COMMON = (
    "--max_steps", 6, "--eval_every", 3, "--keep_best", 2, "--precision", "fp32", "--learning_rate", 0.003, "--log_every", 1,
    "--verdict_rows", 2, "--max_new_tokens", 4, "--preflight", "false", "--optimizer.eps", 0.001, "--max_grad_norm", CLIPPED,
)  # fmt: skip
FULL, LORA = ("--method", "full"), ("--method", "lora")
Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def fit(
    tmp_path_factory: pytest.TempPathFactory, plain_backbone: Path, uneven: Path, environment: Mapping[str, str], forks: Any
) -> Fit:
    """`lightning-ft fit` into a new folder, which it returns.

    Its processes are forks with the variables of torchrun; `launched`: one process is started, and Lightning starts the
    others; `torchrun`: torchrun starts so many.
    """
    place = tmp_path_factory.mktemp("strategies")

    def run(
        *words: object, name: str | None = None, torchrun: int = 0, launched: bool = False, status: int = 0,
        fresh: bool = True, model: Path = plain_backbone,
    ) -> Path:  # fmt: skip
        folder = place / (name or f"run_{len(list(place.iterdir()))}")
        begin = ("--model", model, "--data", uneven, "--output", folder, *COMMON) if fresh else ("--resume", folder)
        argv = ["fit", *map(str, (*begin, *words))]
        if torchrun or launched:
            start = [sys.executable, "-m", "lightning_ft"]
            if torchrun:
                start[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
            done = subprocess.run([*start, *argv], env=os.environ | environment, capture_output=True, text=True, timeout=300)
            code, said = done.returncode, done.stdout + done.stderr
        else:
            asked = argv[argv.index("--devices") + 1] if "--devices" in argv else None
            before = 1 if fresh else json.loads((folder / "run.json").read_text())["processes"]
            ended = forks(*argv, folder=folder, processes=int(asked or before))
            code, said = ended.status, ended.log
        assert code == status, said
        assert status or "loss: Loss path chunked: " in said
        return folder

    return run


@pytest.fixture(scope="module")
def full(fit: Fit) -> Path:
    """All weights, in one process."""
    return fit(*FULL, "--batch_size", 8, name="full")


@pytest.fixture(scope="module")
def lora(fit: Fit) -> Path:
    """An adapter, in one process."""
    return fit(*LORA, "--batch_size", 8, name="lora")


@pytest.fixture(scope="module")
def cut_and_spread(fit: Fit) -> Path:
    """All weights on two times two processes."""
    return fit(
        *FULL, "--batch_size", 4, "--devices", 4, "--strategy", "fsdp2_tp", "--tensor_parallel", 2, name="cut_and_spread"
    )  # fmt: skip


def equal(run: Path, one: Path, of_run: Any) -> None:
    """Losses, gradient norms, validation and weights are those of one process."""
    mine, other = of_run.lines(run), of_run.lines(one)
    assert min(line["grad_norm"] for line in mine if "grad_norm" in line) > CLIPPED
    assert [line.keys() for line in mine] == [line.keys() for line in other]
    for a, b in zip(mine, other, strict=True):
        for key, near in (("loss", 1e-6), ("val_loss", 1e-6), ("grad_norm", 1e-5)):
            assert b.get(key, 0) == pytest.approx(a.get(key, 0), rel=near), (key, a["step"])
    for folder in ("final_model", "best_model"):
        mine, other = of_run.weights(run, folder), of_run.weights(one, folder)
        assert mine.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-6)
    # The optimiser's state of a process is in the checkpoint only.
    assert not (run / "final_model" / "optimizer").exists()
    assert not (run / "best_model" / "optimizer").exists()
    verdicts = [json.loads((path / "verdict.json").read_text()) for path in (run, one)]
    for a, b in zip(*(verdict["comparisons"] for verdict in verdicts), strict=True):
        assert a["tuned"] == pytest.approx(b["tuned"], rel=1e-4)


def losses(run: Path, of_run: Any) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in of_run.lines(run) if "loss" in line]


def goes_on(run: Path, one: Path, fit: Fit, of_run: Any) -> None:
    """A run that stopped after its third step ends, with the same processes, as the run of one process."""
    copy = run.with_name(f"{run.name}_goes_on")
    stopped_at(run, copy, 3)
    equal(fit(name=copy.name, fresh=False), one, of_run)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_four_processes_train_all_weights_as_one(strategy: str, fit: Fit, full: Path, of_run: Any) -> None:
    equal(fit(*FULL, "--batch_size", 2, "--devices", 4, "--strategy", strategy), full, of_run)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "tp"])
def test_two_processes_train_all_weights_as_one(strategy: str, fit: Fit, full: Path, of_run: Any) -> None:
    rows = 8 if strategy == "tp" else 4
    words = ("--preflight", "true") if strategy == "fsdp2" else ()  # it changes nothing, also of a model that lies in parts
    run = fit(*FULL, "--batch_size", rows, "--devices", 2, "--strategy", strategy, *words, launched=strategy == "ddp")
    equal(run, full, of_run)
    record = json.loads((run / "run.json").read_text())
    assert (record["processes"], record["world_size"]) == (2, 1 if strategy == "tp" else 2)
    if strategy != "ddp":  # it goes on below, also in one process
        goes_on(run, full, fit, of_run)


def test_bf16_is_bf16_under_every_strategy(fit: Fit, of_run: Any) -> None:
    """Gathered in it, or under autocast where nothing is gathered: losses as of one process, and not those of float32.

    What is updated is float32 all the same.
    """
    words = (*FULL, "--precision", "bf16", "--save_every", 0)
    runs = {
        strategy: fit(*words, "--batch_size", rows, "--devices", devices, "--strategy", strategy)
        for strategy, rows, devices in (("auto", 8, 1), ("ddp", 4, 2), ("fsdp2", 4, 2), ("tp", 8, 2))
    }
    wide = losses(fit(*FULL, "--batch_size", 8, "--save_every", 0), of_run)
    for strategy, run in runs.items():
        assert losses(run, of_run) == pytest.approx(wide, rel=1e-2), strategy
        assert abs(losses(run, of_run)[0] - wide[0]) > 1e-6 * wide[0], strategy
        assert {tensor.dtype for tensor in of_run.weights(run, "final_model").values()} == {torch.float32}, strategy


@pytest.mark.parametrize("more", [(), ("--gradient_checkpointing", "true", "--packing", "off")], ids=["", "recomputed, padded"])
def test_two_processes_train_an_adapter_as_one(more: tuple[str, ...], fit: Fit, lora: Path, of_run: Any) -> None:
    one = fit(*LORA, "--batch_size", 8, *more) if more else lora
    run = fit(*LORA, "--batch_size", 4, "--devices", 2, "--strategy", "fsdp2", *more)
    equal(run, one, of_run)
    if not more:
        goes_on(run, one, fit, of_run)
        alone = run.with_name(f"{run.name}_alone")
        stopped_at(run, alone, 3)
        equal(fit("--devices", 1, name=alone.name, fresh=False), one, of_run)


def test_weights_of_16_bits_are_widened_by_each_process_for_itself(
    plain_backbone: Path, tmp_path: Path, fit: Fit, of_run: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain_backbone, dtype=torch.bfloat16)
    shutil.copytree(plain_backbone, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "wide")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).save_pretrained(tmp_path / "wide")
    words = (*FULL, "--precision", "bf16", "--batch_size", 4, "--devices", 2, "--strategy", "fsdp2")
    narrow, wide = (fit(*words, model=tmp_path / name) for name in ("model", "wide"))
    assert [line.get("loss") for line in of_run.lines(narrow)] == [line.get("loss") for line in of_run.lines(wide)]
    one, other = (of_run.weights(run, "final_model") for run in (narrow, wide))
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_two_processes_train_an_adapter_on_few_bits_as_one(quantize: str, fit: Fit, of_run: Any) -> None:
    qlora = (*LORA, "--quantize", quantize)
    one = fit(*qlora, "--batch_size", 8)
    for strategy in ("ddp", "fsdp2"):
        run = fit(*qlora, "--batch_size", 4, "--devices", 2, "--strategy", strategy)
        equal(run, one, of_run)
    if quantize == "nf4":
        goes_on(run, one, fit, of_run)


def test_processes_that_slurm_starts_train_as_one(
    plain_backbone: Path, uneven: Path, environment: Mapping[str, str], tmp_path: Path, full: Path, of_run: Any
) -> None:
    """Two tasks on one machine, with the variables that srun gives them."""
    run = tmp_path / "run"
    words = ("--model", plain_backbone, "--data", uneven, "--output", run, *COMMON, *FULL, "--batch_size", 4, "--devices", 2)
    command = [sys.executable, "-m", "lightning_ft", "fit", *map(str, words)]
    job = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            command, env=os.environ | environment | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    equal(run, full, of_run)


def test_four_processes_cut_and_spread(cut_and_spread: Path, full: Path, of_run: Any) -> None:
    equal(cut_and_spread, full, of_run)
    parts = list((cut_and_spread / "checkpoints" / "checkpoint-step-6" / "optimizer").iterdir())
    assert len(parts) == 4
    assert max(part.stat().st_size for part in parts) < 0.5 * sum(part.stat().st_size for part in parts)


@pytest.mark.parametrize(
    "words", [("--devices", "2"), ("--devices", "2", "--strategy", "fsdp2", "--tensor_parallel", "1"), ("--devices", "4")],
    ids=["2 of 4, cut", "2 of 4, spread", "4 of 4"],
)  # fmt: skip
def test_it_goes_on_with_other_processes(
    words: tuple[str, ...], cut_and_spread: Path, fit: Fit, full: Path, of_run: Any, request: pytest.FixtureRequest
) -> None:
    copy = cut_and_spread.with_name(f"again_{request.node.callspec.id.replace(' ', '_')}")
    stopped_at(cut_and_spread, copy, 3)
    equal(fit(*words, name=copy.name, fresh=False), full, of_run)


def test_a_run_on_two_goes_on_on_one_and_back(fit: Fit, full: Path, of_run: Any) -> None:
    """Under ddp, started by torchrun: the rows of a step stay what they were."""
    run = fit(*FULL, "--batch_size", 4, torchrun=2)
    equal(run, full, of_run)
    for number, way in enumerate(({}, {"torchrun": 2})):
        copy = run.with_name(f"ddp_{number}")
        stopped_at(run, copy, 3)
        equal(fit("--devices", 1, name=copy.name, fresh=False, **way), full, of_run)


def test_a_checkpoint_of_the_other_kind_is_refused(
    cut_and_spread: Path, full: Path, fit: Fit, capfd: pytest.CaptureFixture[str]
) -> None:
    for run, words in ((full, ("--strategy", "fsdp2")), (cut_and_spread, ("--strategy", "ddp", "--tensor_parallel", 1))):
        copy = run.with_name(f"other_{run.name}")
        stopped_at(run, copy, 3)
        fit("--devices", 1, *words, name=copy.name, fresh=False, status=2)
        shutil.rmtree(copy)
