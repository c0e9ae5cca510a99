from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_ft_export.merge import Distance, merge
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lightning_ft
from lightning_ft.cli import main
from lightning_ft.errors import CheckFailedError, UsageError
from lightning_ft.loading import load
from lightning_ft.registry import registry
from lightning_ft.testing.methods import logits
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder

pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "verdict_rows": 0,
    "preflight": False,
    "learning_rate": 1e-2,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(40)))
    return path


@pytest.fixture(scope="module")
def runs(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs by family, method and how the base is stored, each made once."""
    made: dict[Any, str] = {}

    def run(family: Family, method: str, quantize: str | None = None) -> str:
        key = (family, method, quantize)
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            model = str(tiny_backbone_folder(folder / "model", family))
            output = str(folder / "run")
            lightning_ft.fit(model=model, data=rows, method=method, quantize=quantize, output=output, **OPTIONS)
            made[key] = output
        return made[key]

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_base_and_adapter(family: Family, runs: Any, rows: Path, tmp_path: Path) -> None:
    run = runs(family, "lora")
    distance = merge(run, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(load(run).model), atol=1e-5, rtol=0)
    assert distance.most < 1e-4
    assert distance.same_choice == 1.0
    assert "peft" not in (tmp_path / "merged" / "config.json").read_text()
    found = [
        lightning_ft.evaluate(model, rows, metrics=["loss"], output=str(tmp_path / name), precision="fp32").metrics["loss"]
        for name, model in (("of_run", run), ("of_merged", str(tmp_path / "merged")))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_adapter_of_a_quantised_base_keeps_its_function_only_on_weights_that_are_turned_back(
    family: Family, quantize: str, runs: Any, tmp_path: Path
) -> None:
    pytest.importorskip("lightning_ft_quantize")
    run = runs(family, "lora", quantize)
    back = merge(run, tmp_path / "back")
    original = merge(run, tmp_path / "original", base="original")
    near = {"nf4": 1e-4, "int8": 0.1}[quantize]  # products with int8 weights round their inputs as well
    assert back.most < near
    assert quantize == "int8" or original.mean > 4 * back.mean
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("back", "original")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items()), "nothing was turned back"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(logits(plain), logits(load(run).model), atol=near, rtol=0)
    assert not getattr(plain, "is_quantized", False)


MERGEABLE = [name for name, entry in registry().methods.items() if not entry.cls.trains_base]
SOFT = ("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2")


@pytest.mark.parametrize("name", MERGEABLE)
def test_every_adapter_is_merged_or_refused(name: str, runs: Any, tmp_path: Path) -> None:
    run = runs("llama", name)
    if name in SOFT:
        with pytest.raises(UsageError, match="which adds inputs; serve the adapter as it is"):
            merge(run, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    assert merge(run, tmp_path / "merged").most < 1e-3
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("names", [["embed_tokens", "q_proj"], ["lm_head", "q_proj"], ["embed_tokens", "lm_head"]])
def test_a_matrix_that_two_layers_share_becomes_two_where_an_adapter_changes_one_of_them(
    names: list[str], rows: Path, tmp_path: Path
) -> None:
    method = registry().methods["lora"].cls(target_modules=names)
    lightning_ft.fit(model="embedded", data=rows, method=method, output=str(tmp_path / "run"), **OPTIONS)
    assert load("embedded").model.config.tie_word_embeddings
    distance = merge(str(tmp_path / "run"), tmp_path / "merged", dtype="fp32")
    assert distance.same_choice > 0.97
    ids = {"input_ids": torch.arange(100, 140)[None]}
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(**ids).logits
        torch.testing.assert_close(
            plain, load(str(tmp_path / "run"), dtype=torch.float32).model(**ids).logits, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in MERGEABLE if name not in SOFT])
def test_every_adapter_of_a_quantised_base_is_merged(name: str, family: Family, runs: Any, tmp_path: Path) -> None:
    """Also those that take no Conv1D: quantised layers are linear ones, and GPT-2 has its own kind again afterwards."""
    pytest.importorskip("lightning_ft_quantize")
    run = runs(family, name, "nf4")
    assert merge(run, tmp_path / "merged").most < 1e-3
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(load(run).model), atol=1e-3, rtol=0)


def test_the_type_of_the_weights_can_be_named_and_they_are_rounded_once(runs: Any, tmp_path: Path) -> None:
    merge(runs("llama", "lora"), tmp_path / "exact", dtype="fp32")
    merge(runs("llama", "lora"), tmp_path / "merged", dtype="bf16")
    exact, low = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("exact", "merged"))
    assert all(torch.equal(tensor, exact[name].bfloat16()) for name, tensor in low.items())
    assert {tensor.dtype for tensor in low.values()} == {torch.bfloat16}


def test_an_adapter_upon_another_is_merged_together_with_it(runs: Any, rows: Path, tmp_path: Path) -> None:
    first = runs("llama", "lora")
    method = registry().methods["lora"].cls(rank=4, beneath=first)
    model = json.loads((Path(first) / "final_model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    lightning_ft.fit(model=model, data=rows, method=method, output=str(tmp_path / "run"), **OPTIONS)
    assert merge(str(tmp_path / "run"), tmp_path / "merged").most < 1e-4


def test_what_cannot_be_merged_is_refused(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("llama", "lora")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, said in (
        ([run], "Expected --output, got nothing"),
        ([runs("llama", "full"), "--output", "x"], "is a whole model already"),
        ([run, "--output", str(tmp_path / "full")], "which is there already; name another"),
        ([run, "--output", str(tmp_path / "new"), "--base", "original"], "Expected --base for an adapter of a quantised base"),
        ([run, "--output", str(tmp_path / "new"), "--base", "nf4"], "Expected --base to be one of dequantized, original"),
        ([str(tmp_path / "nowhere"), "--output", "x"], "nowhere' is none"),
    ):
        assert main(["merge", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_that_computes_no_numbers_is_not_written(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Distance(float("nan"), 0.0, 1.0, 0.0)
    monkeypatch.setattr("lightning_ft_export.merge._distance", lambda *_: none)
    with pytest.raises(CheckFailedError, match="NaN or infinity from the model merged in fp16; nothing was written; type"):
        merge(runs("llama", "lora"), tmp_path / "merged", dtype="fp16")
    assert not (tmp_path / "merged").exists()


def test_from_the_command_line(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", runs("llama", "lora"), "--output", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert "the same most likely token at 100.00% of the positions" in said
    assert f"merged: {tmp_path / 'merged'}" in said
