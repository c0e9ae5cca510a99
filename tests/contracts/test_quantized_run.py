"""Runs on a quantised base: what is left, going on, loading in a new process, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.loading import load, locate, with_adapter
from lightning_ft.quantization import NOTE, Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import inputs, logits
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import check_resume, stopped_at

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.testing.stranger import Stranger

pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {
    "max_steps": 8,
    "eval_every": 4,
    "batch_size": 4,
    "verdict_rows": 0,
    "preflight": True,
    "keep_best": 5,
    "log_every": 1,
    "quantize": "nf4",
    "precision": "fp32",
}  # fmt: skip
pytest.importorskip("lightning_ft_quantize")
NEW_PROCESS = """
import sys, torch
from lightning_ft.loading import load
from lightning_ft.testing.methods import logits
torch.save(logits(load(sys.argv[1]).model), sys.argv[2])
"""
PEFT_LACKS = ("loha", "lokr")
"""Methods of which peft has no layers for 4-bit weights."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 9 + 1)))} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_backbone_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", params=["lora", *PEFT_LACKS])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(model: str, rows: Path, method: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return lightning_ft.fit(model=model, data=rows, method=method, output=str(folder), double_quant=True, **OPTIONS)


def test_the_folder_says_how_the_base_was_stored(run: Any) -> None:
    for name in ("final_model", "best_model", "checkpoints/checkpoint-step-4"):
        assert json.loads((run.folder / name / NOTE).read_text()) == {
            "quantize": "nf4", "double_quant": True, "compute_dtype": "fp32",
        }  # fmt: skip
    assert locate(str(run.folder)).quantization == Quantization(quantize="nf4", double_quant=True, compute_dtype="fp32")


def test_the_card_says_how_the_model_is_loaded_as_it_was_trained(run: Any, method: str) -> None:
    folder = run.folder / "final_model"
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    if method not in PEFT_LACKS:
        assert "quantization_config=BitsAndBytesConfig(" in code
        assert "'bnb_4bit_use_double_quant': True" in code
        return
    assert "peft" not in code
    names: dict[str, Any] = {}
    exec(code.replace("PATH_OF_THIS_FOLDER", str(folder)), names)
    assert torch.equal(logits(names["model"]), logits(load(str(run.folder)).model))


def test_without_our_code_the_adapter_loads_on_the_base_of_full_precision(run: Any, model: str, stranger: Stranger) -> None:
    here = with_adapter(load(model).model, run.folder / "final_model")
    torch.testing.assert_close(stranger.logits(run.folder / "final_model", inputs()), logits(here))


def test_a_new_process_has_the_same_logits(run: Any, tmp_path: Path) -> None:
    here = load(str(run.folder)).model
    assert here.get_base_model().is_loaded_in_4bit
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(run.folder), str(tmp_path / "logits.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(here))


def test_the_loss_of_the_run_is_that_of_the_loaded_model(run: Any, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that trained and the one that is loaded later are one function, evaluations in between or not."""
    last = [line["val_loss"] for line in run.metrics if "val_loss" in line][-1]
    assert main(["validate", "--model", str(run.folder), "--output", str(run.folder.parent / "validated")]) == 0
    found = json.loads((run.folder.parent / "validated" / "results.json").read_text())
    assert found["metrics"]["loss"] == pytest.approx(last, rel=1e-4)


def test_a_run_that_goes_on_from_its_middle_ends_with_the_same_bits(
    run: Any, method: str, model: str, rows: Path, tmp_path: Path
) -> None:
    other = tmp_path / "copy"
    options = {**OPTIONS, "method": method, "output": str(run.folder), "resume": str(stopped_at(run.folder, other, 4))}
    lightning_ft.fit(model=model, data=rows, double_quant=True, **options)
    mine, theirs = (load_file(f / "final_model" / "adapter_model.safetensors") for f in (run.folder, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_with_dropout_and_in_16_bits_it_does_so_too(quantize: str, model: str, rows: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "quantize": quantize, "precision": "bf16", "preflight": False}
    check_resume(tmp_path, 4, model=model, data=rows, method=registry().methods["lora"].cls(rank=4, dropout=0.2), **options)


@pytest.mark.parametrize("name", [name for name, entry in registry().methods.items() if not entry.cls.trains_base])
def test_so_does_every_adapter_and_a_loaded_one_computes_what_was_trained(
    name: str, model: str, rows: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "max_steps": 4, "eval_every": 2, "preflight": False}
    run = check_resume(tmp_path, 2, model=model, data=rows, method=name, **options)
    assert run._loaded is not None
    torch.testing.assert_close(logits(load(str(run.folder)).model), logits(run._loaded.model))


def test_products_later_are_of_the_type_that_they_were_in_training(model: str, rows: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "precision": "bf16", "max_steps": 2, "preflight": False}
    lightning_ft.fit(model=model, data=rows, output=str(tmp_path / "run"), **options)
    layer = load(str(tmp_path / "run")).model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")
    assert layer.compute_dtype == torch.bfloat16


def test_an_adapter_of_full_precision_does_not_go_on_upon_a_quantised_base(model: str, rows: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "max_steps": 2, "preflight": False, "quantize": None}
    lightning_ft.fit(model=model, data=rows, output=str(tmp_path / "run"), **options)
    with pytest.raises(UsageError, match="that it was trained on, of full precision, got --quantize nf4; leave it out"):
        lightning_ft.fit(
            model=str(tmp_path / "run"), data=rows, output=str(tmp_path / "other"), **{**options, "quantize": "nf4"}
        )


def test_an_adapter_is_trained_on_upon_the_base_that_it_knows(run: Any, method: str, rows: Path, tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "quantize"} | {"method": method}
    further = lightning_ft.fit(model=str(run.folder), data=rows, output=str(tmp_path / "further"), **options)
    assert locate(str(further.folder)).quantization == Quantization(quantize="nf4", double_quant=True, compute_dtype="fp32")
    assert "quantize: nf4" in (further.folder / "config.yaml").read_text()
    first = next(line["val_loss"] for line in further.metrics if "val_loss" in line)
    assert first < next(line["val_loss"] for line in run.metrics if "val_loss" in line)
    with pytest.raises(UsageError, match=r"on the base that it was trained on \(quantize nf4, double_quant True"):
        lightning_ft.fit(model=str(run.folder), data=rows, output=str(tmp_path / "other"), quantize="int8", **options)
    same = lightning_ft.fit(model=str(run.folder), data=rows, output=str(tmp_path / "same"), quantize="nf4", **options)
    assert locate(str(same.folder)).quantization == Quantization(quantize="nf4", double_quant=True, compute_dtype="fp32")


@pytest.mark.parametrize(
    "note",
    [
        '{"quantize": "nf3"}', '{"quantize": "nf4", "double_quant": "yes"}', '{"quantize": "nf4", "compute_dtype": "fp8"}',
        '{"quantize": "nf4", "bits": 4}', "{}",
    ],
)  # fmt: skip
def test_a_damaged_note_is_named(note: str, run: Any, tmp_path: Path) -> None:
    shutil.copytree(run.folder / "final_model", tmp_path / "adapter")
    (tmp_path / "adapter" / NOTE).write_text(note)
    with pytest.raises(UsageError, match=rf"Expected '.*{NOTE}' to hold quantize, double_quant, compute_dtype as they"):
        locate(str(tmp_path / "adapter"))


def test_a_note_that_is_gone_is_missed(run: Any, tmp_path: Path) -> None:
    shutil.copytree(run.folder / "final_model", tmp_path / "adapter")
    (tmp_path / "adapter" / NOTE).unlink()
    with pytest.raises(UsageError, match=rf"Expected '.*{NOTE}' beside the adapter"):
        locate(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quantize", "nf4", "--method", "full"], "Expected --method of an adapter with --quantize nf4, got full"),
        (["--quantize", "nf3"], "Expected --quantize to be one of nf4, fp4, int8 or none; got 'nf3'."),
        (["--double_quant", "true"], "Expected --quantize nf4 or fp4 with --double_quant"),
        (["--quantize", "int8", "--double_quant", "true"], "Expected --double_quant with --quantize nf4 or fp4, got int8"),
        (["--compute_dtype", "bf16"], "Expected --quantize nf4 or fp4 with --compute_dtype"),
        (["--quantize", "nf4", "--from_scratch", "true"], "Expected --quantize without --from_scratch"),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str], said: str, model: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--model", model, "--data", str(rows), "--output", str(tmp_path / "run"), *flags]) == 2
    assert said in capsys.readouterr().err


def test_without_a_plugin_that_quantises_it_is_said(model: str, rows: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--model", model, "--data", str(rows), "--output", str(tmp_path / "run"), "--quantize", "nf4"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_ft", *arguments], capture_output=True, text=True, check=False,
        env={"PATH": "", "LIGHTNING_FT_DISABLE_PLUGINS": "quantize", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Expected an installed plugin that loads weights as --quantize nf4, found none" in done.stderr
