"""What only a GPU shows: training there is training on the CPU. Every test is skipped where there is none.

A reference on the CPU runs in a process that does not see the GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FIT = (
    *(
        "--max_steps",
        "8",
        "--save_every",
        "4",
        "--eval_every",
        "4",
        "--keep_best",
        "9",
        "--log_every",
        "1",
        "--batch_size",
        "8",
    ),
    *("--learning_rate", "0.01", "--seed", "3", "--verdict_rows", "0"),
)
HIDDEN: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose heads have the 16 entries that the GPU's attention kernels take."""
    from lightning_ft.testing.models import tiny_backbone_folder

    return tiny_backbone_folder(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows of instruction and output."""
    file = tmp_path_factory.mktemp("data") / "support.jsonl"
    lines = [{"instruction": f"Where is order {n}?", "output": f"It is in city {n % 7}" + "!" * (n % 9)} for n in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def run(*argv: object, environment: Mapping[str, str] = {}) -> str:
    """`lightning-ft ARGV` in a process of its own; what it said."""
    command = [sys.executable, "-m", "lightning_ft", *map(str, argv)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def losses(folder: Path, name: str = "loss") -> list[float]:
    """A column of the run's metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


def record(folder: Path) -> dict[str, Any]:
    """The run's own account."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_gpu_trains_what_the_cpu_trains(backbone: Path, rows: Path, tmp_path: Path, method: str, packing: str) -> None:
    given = ("fit", backbone, "--data", rows, *FIT, "--precision", "fp32", "--method", method, "--packing", packing)
    for where, environment in (("cpu", HIDDEN), ("gpu", {})):
        run(*given, "--output", tmp_path / where, environment=environment)
    assert record(tmp_path / "gpu")["device"] == torch.cuda.get_device_name(0)
    assert record(tmp_path / "cpu")["device"] != torch.cuda.get_device_name(0)
    for name in ("loss", "val_loss", "grad_norm"):
        assert losses(tmp_path / "gpu", name) == pytest.approx(losses(tmp_path / "cpu", name), rel=1e-3)
    assert losses(tmp_path / "gpu")[-1] < losses(tmp_path / "gpu")[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_sixteen_bits_follow_thirty_two(backbone: Path, rows: Path, tmp_path: Path, method: str, precision: str) -> None:
    for chosen in ("fp32", precision):
        run("fit", backbone, "--data", rows, *FIT, "--precision", chosen, "--method", method, "--output", tmp_path / chosen)
    # The scaler of fp16 begins so high that it skips the first updates: full weights follow a little behind.
    allowed = 0.1 if (method, precision) == ("full", "fp16") else 0.05
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "fp32"), rel=allowed)


def killed(folder: Path, *given: object) -> None:
    """Run `fit` until it has done six of its eight steps, and end its process there."""
    code = "import os\nfrom lightning_ft.module import FineTuner\nbegin = FineTuner.on_train_batch_start\n"
    code += "def stop(self, step, index):\n    if step.number == 6:\n        os._exit(9)\n    begin(self, step, index)\n"
    code += "FineTuner.on_train_batch_start = stop\nfrom lightning_ft.cli import main\nmain(__import__('sys').argv[1:])\n"
    command = [sys.executable, "-c", code, *map(str, given), "--output", str(folder)]
    assert subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(backbone: Path, rows: Path, tmp_path: Path, precision: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = ("fit", backbone, "--data", rows, *FIT, "--precision", precision)
    run(*given, "--output", whole)
    killed(cut, *given)
    assert "from checkpoint-step-4" in run("fit", "--resume", cut)
    assert losses(cut) == losses(whole)
    name = "final_model/adapter_model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_of_the_gpu_goes_on_without_one(backbone: Path, rows: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = ("fit", backbone, "--data", rows, *FIT, "--precision", "fp32")
    run(*given, "--output", whole)
    killed(cut, *given)
    assert "from checkpoint-step-4" in run("fit", "--resume", cut, environment=HIDDEN)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-3)


def test_the_preflight_says_the_memory_that_is_taken(backbone: Path, rows: Path, tmp_path: Path) -> None:
    said = run("fit", backbone, "--data", rows, *FIT, "--preflight", "true", "--output", tmp_path / "run")
    assert "preflight: peak memory" in said
    predicted = record(tmp_path / "run")["preflight"]["peak_memory"]
    assert max(losses(tmp_path / "run", "peak_memory")) == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(
    ("share", "sentence"), [(5e-4, "does not suffice for a micro-batch"), (1e-9, "The model's weights take 0.0 GiB, more")]
)
def test_memory_that_runs_out_is_one_sentence(backbone: Path, tmp_path: Path, share: float, sentence: str) -> None:
    long = tmp_path / "long.jsonl"
    lines = [json.dumps({"instruction": f"Say it {n}", "output": "word " * 200}) for n in range(300)]
    long.write_text("\n".join(lines), encoding="utf-8")
    code = f"import torch\ntorch.cuda.set_per_process_memory_fraction({share})\nfrom lightning_ft.cli import main\n"
    code += "raise SystemExit(main(__import__('sys').argv[1:]))\n"
    given = (
        "fit",
        backbone,
        "--data",
        long,
        "--batch_size",
        256,
        "--batch_tokens",
        500_000,
        "--max_lost",
        1,
        "--output",
        tmp_path / "run",
    )
    command = [sys.executable, "-c", code, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_answers_are_the_cpus(backbone: Path, rows: Path, tmp_path: Path) -> None:
    run("fit", backbone, "--data", rows, *FIT, "--precision", "fp32", "--output", tmp_path / "run")
    said = [
        run(
            "generate",
            "--model",
            tmp_path / "run",
            "--prompt",
            "Where is order 3?",
            "--max_new_tokens",
            "12",
            environment=where,
        )
        for where in (HIDDEN, {})
    ]
    assert said[0] == said[1]


WATCHED = """
import sys, torch
from lightning_ft.module import FineTuner
from lightning_ft.run.recorder import Recorder
begin, log = FineTuner.on_train_batch_start, Recorder._check_counts
def watch(self, step, index):
    torch.cuda.set_sync_debug_mode("error" if step.number >= 2 else "default")
    begin(self, step, index)
def told(self, *given):
    torch.cuda.set_sync_debug_mode("default")
    log(self, *given)
FineTuner.on_train_batch_start, Recorder._check_counts = watch, told
from lightning_ft.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_no_step_waits_for_the_gpu(backbone: Path, rows: Path, tmp_path: Path, method: str, packing: str) -> None:
    """Between two log lines the host only queues work: torch raises at whatever would wait."""
    given = ("fit", backbone, "--data", rows, "--max_steps", 8, "--log_every", 100, "--batch_size", 8, "--verdict_rows", 0)
    more = ("--eval_every", 100, "--packing", packing, "--method", method, "--debug", "--output", tmp_path / "run")
    command = [sys.executable, "-c", WATCHED, *map(str, given + more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


POISONED = """
import sys, torch
from lightning_ft.module import FineTuner
plain = FineTuner._micro_loss
def poisoned(self, batch, step):
    return plain(self, batch, step) * (float("nan") if step.number == 5 else 1.0)
FineTuner._micro_loss = poisoned
end = FineTuner.configure_gradient_clipping
def seen(self, optimizer, *given, **more):
    if self.global_step == 6:
        torch.save([p.detach().cpu() for p in self.trained_parameters()], sys.argv[1])
    end(self, optimizer, *given, **more)
FineTuner.configure_gradient_clipping = seen
from lightning_ft.cli import main
raise SystemExit(main(sys.argv[2:]))
"""


def test_a_step_that_is_not_finite_is_told_one_step_later_and_changes_nothing(
    backbone: Path, rows: Path, tmp_path: Path
) -> None:
    given = ("fit", backbone, "--data", rows, *FIT, "--log_every", 100, "--save_every", 5, "--output", tmp_path / "run")
    command = [sys.executable, "-c", POISONED, str(tmp_path / "seen.pt"), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "of step 6 is not finite" in done.stderr
    saved = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-step-5" / "adapter_model.safetensors")
    seen = torch.load(tmp_path / "seen.pt")
    assert sorted(float(t.double().norm()) for t in seen) == sorted(float(t.double().norm()) for t in saved.values())


def test_packed_rows_go_through_one_kernel(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits the check of packing, which compares with each document alone, has to meet the kernel for all documents."""
    from transformers import AutoModelForCausalLM

    from lightning_ft.engine import attention
    from lightning_ft.engine.packing import check_packing

    calls: list[int] = []
    kernel = attention._varlen

    def counted(*args: Any) -> Any:
        calls.append(1)
        return kernel(*args)

    monkeypatch.setattr(attention, "_varlen", counted)
    model: Any = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.bfloat16)
    model.to("cuda")
    check = check_packing(model, model.config.vocab_size)
    assert (check.ok, check.way) == (True, "documents"), check.reason
    assert calls


def test_norms_are_torchs_kernel_and_stay_in_16_bits() -> None:
    import copy

    from lightning_ft.engine.norm import fuse_norms
    from lightning_ft.testing.models import tiny_llama

    plain: Any = tiny_llama().model.norm
    plain.to("cuda", torch.bfloat16)
    short = copy.deepcopy(plain)
    assert fuse_norms(torch.nn.Sequential(short)) == 1
    x = torch.randn(7, len(plain.weight), device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        found = short(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain(x), rtol=2e-2, atol=2e-2)


def test_offloaded_activations_leave_the_gpu_and_come_back() -> None:
    """Of 8 layers that are recomputed, the inputs of (2048, 256) float32 numbers are what the GPU keeps; the host has them."""
    import transformers as tf

    from lightning_ft.engine.recompute import checkpoint_activations

    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    ids = torch.arange(2048, device="cuda")[None] % 97

    def passed(offload: bool) -> tuple[int, float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model: Any = tf.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        model.cuda().train()
        checkpoint_activations(model, offload=offload)
        for _ in range(2):  # the first pass makes what stays, as the rooms of cuBLAS
            model.zero_grad(set_to_none=True)
            before = torch.cuda.memory_allocated()
            loss = model(input_ids=ids, use_cache=False, logits_to_keep=64).logits.float().square().mean()
            kept = torch.cuda.memory_allocated() - before
            loss.backward()
        return kept, loss.item(), {name: p.grad for name, p in model.named_parameters()}

    (kept, loss, wanted), (less, same, found) = passed(False), passed(True)
    assert kept - less == pytest.approx(8 * 2048 * 256 * 4, rel=0.15)
    assert same == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found, wanted)


def test_a_run_with_offloaded_activations_is_the_run(backbone: Path, rows: Path, tmp_path: Path) -> None:
    given = ("fit", backbone, "--data", rows, *FIT, "--precision", "fp32", "--gradient_checkpointing", "true")
    for offload in ("false", "true"):
        run(*given, "--activation_offload", offload, "--output", tmp_path / offload)
    for name in ("loss", "val_loss"):
        assert losses(tmp_path / "true", name) == pytest.approx(losses(tmp_path / "false", name), rel=1e-4)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_compiled_run_is_the_run_on_a_gpu(backbone: Path, rows: Path, tmp_path: Path, packing: str) -> None:
    for compiled in ("false", "true"):
        given = ("fit", backbone, "--data", rows, *FIT, "--precision", "fp32", "--packing", packing)
        run(*given, "--compile", compiled, "--output", tmp_path / compiled)
    for name in ("loss", "val_loss"):
        assert losses(tmp_path / "true", name) == pytest.approx(losses(tmp_path / "false", name), rel=1e-3)
