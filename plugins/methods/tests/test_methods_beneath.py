from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.lora import LoRA
from lightning_ft_methods.prompts import PromptTuning
from safetensors.torch import load_file, save_file

import lightning_ft
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.loading import load
from lightning_ft.run import verdict
from lightning_ft.testing.methods import METHOD_CLAUSES, logits, train
from lightning_ft.testing.models import tiny_backbone_folder, tiny_llama
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {
    "max_steps": 8, "eval_every": 4, "batch_size": 4, "precision": "fp32", "verdict_rows": 8, "keep_best": 5, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_backbone_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rows")
    for name, answer in (("first", "yes indeed"), ("second", "no never")):
        lines = [{"instruction": f"{name} {n}?", "output": f"{answer} {n % 5}"} for n in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [folder / "first.jsonl", folder / "second.jsonl"]


@pytest.fixture(scope="module")
def first(model: str, rows: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = str(tmp_path_factory.mktemp("runs") / "first")
    return lightning_ft.fit(model=model, data=rows[0], output=output, learning_rate=1e-2, **OPTIONS)


@pytest.fixture(scope="module")
def second(model: str, rows: list[Path], first: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output, method = str(tmp_path_factory.mktemp("runs") / "second"), LoRA(rank=4, beneath=str(first.folder))
    return lightning_ft.fit(model=model, data=rows[1], output=output, learning_rate=1e-2, method=method, **OPTIONS)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_every_clause_of_the_contract(first: Any, model: str) -> None:
    from transformers import AutoModelForCausalLM

    def base(family: str) -> Any:
        """The same weights as those that the first adapter stands on."""
        return AutoModelForCausalLM.from_pretrained(model)

    run = train(LoRA(beneath=str(first.folder)), "llama", base)
    # The function before training is that of the first adapter, which peft alone leaves out and merging takes in.
    run.base_logits = logits(load(str(first.folder)).model)
    for name in ("options", "gradients", "frozen", "loss", "state", "reference", "packing", "checkpointing", "merge"):
        METHOD_CLAUSES[name](run)


def test_the_first_stays_and_the_second_is_added_to_it(first: Any, second: Any, model: str) -> None:
    folder = second.folder / "final_model"
    mine, beneath = adapter(first.folder / "final_model"), adapter(folder / "beneath")
    assert mine.keys() == beneath.keys()
    assert all(torch.equal(tensor, beneath[name]) for name, tensor in mine.items())
    loaded = load(str(second.folder)).model
    name = "model.layers.1.mlp.down_proj"
    base = tiny_llama().get_parameter(f"{name}.weight")
    change = sum(
        2 * weights[f"base_model.model.{name}.lora_B.weight"] @ weights[f"base_model.model.{name}.lora_A.weight"]
        for weights in (beneath, adapter(folder))
    )
    merged = loaded.merge_and_unload().get_parameter(f"{name}.weight")
    torch.testing.assert_close(merged, base + change, atol=1e-6, rtol=0)


def test_peft_loads_both_without_this_package(second: Any, model: str) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = second.folder / "final_model"
    plain: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
    plain.load_adapter(str(folder / "beneath"), adapter_name="beneath")
    plain.base_model.set_adapter(["beneath", "default"])
    snippet = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(snippet.replace("PATH_OF_THIS_FOLDER", str(folder)), names)
    assert torch.equal(logits(names["model"]), logits(plain)), "the model card says the same"
    assert torch.equal(logits(plain), logits(load(str(second.folder)).model))


def test_the_verdict_compares_with_the_first_adapter(first: Any, second: Any, rows: list[Path]) -> None:
    found = json.loads((second.folder / "verdict.json").read_text())
    loss = next(c for c in found["comparisons"] if c["metric"] == "loss")
    test = second.folder.parent / "test.jsonl"
    ids = {int(sample["row"].rpartition(":")[2]) - 1 for sample in found["samples"]}
    lines = rows[1].read_text().splitlines()
    test.write_text("".join(lines[i] + "\n" for i in sorted(ids)))
    before = lightning_ft.evaluate(
        str(first.folder), [str(test)], metrics=["loss"], output=str(second.folder.parent / "before")
    )
    assert len(ids) == found["rows"], "the samples are all rows of the verdict"
    assert loss["base"] == pytest.approx(before.metrics["loss"], rel=1e-4)
    assert loss["tuned"] < loss["base"]


def test_the_base_of_a_verdict_is_the_first_adapter_where_the_model_lay_in_parts(first: Any, second: Any, model: str) -> None:
    """There the trained model is read from its folder, which does not hold what training began with."""
    session: Any = SimpleNamespace(
        location=SimpleNamespace(adapter=None), choices=SimpleNamespace(method=LoRA(rank=4, beneath=str(first.folder))),
        tuned=load(str(second.folder / "final_model")).model, config=TrainingConfig(model=model, data=["rows.jsonl"]),
        load=lambda name, from_scratch: load(name), new_tokens=None,
    )  # fmt: skip
    with verdict.base_of(session) as base:
        torch.testing.assert_close(logits(base), logits(load(str(first.folder)).model))


def test_a_run_goes_on_with_the_same_bits(first: Any, second: Any, model: str, rows: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "copy"
    resume = str(stopped_at(second.folder, other, 4))
    lightning_ft.fit(
        model=model, data=rows[1], output=str(second.folder), learning_rate=1e-2,
        method=LoRA(rank=4, beneath=str(first.folder)), resume=resume, **OPTIONS,
    )  # fmt: skip
    mine, theirs = adapter(second.folder / "final_model"), adapter(other / "final_model")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_resume_upon_an_adapter_that_changed_is_refused(
    first: Any, second: Any, model: str, rows: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(first.folder, tmp_path / "first")
    resume = stopped_at(second.folder, tmp_path / "copy", 4)
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace(str(first.folder), "/elsewhere"))
    path = tmp_path / "first" / "final_model" / "adapter_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path)
    method = LoRA(rank=4, beneath=str(tmp_path / "first"))
    with pytest.raises(UsageError, match="with the adapter beneath it; type"):
        lightning_ft.fit(
            model=model, data=rows[1], learning_rate=1e-2, method=method, resume=str(resume), **OPTIONS,
        )  # fmt: skip


def test_going_on_without_the_one_beneath_is_refused(second: Any, rows: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"with the adapter beneath it; type --method.beneath .*final_model/beneath"):
        lightning_ft.fit(model=str(second.folder), data=rows[1], output=str(tmp_path / "run"), method=LoRA(rank=4), **OPTIONS)
    beneath = str(second.folder / "final_model" / "beneath")
    method = LoRA(rank=4, beneath=beneath)
    further = lightning_ft.fit(model=str(second.folder), data=rows[1], output=str(tmp_path / "run"), method=method, **OPTIONS)
    assert json.loads((further.folder / "final_model" / "adapter_config.json").read_text())["r"] == 4


def test_what_cannot_lie_beneath_is_refused(second: Any, model: str, tmp_path: Path) -> None:
    saved: dict[str, Any] = {}
    for name, method in (("prompt", PromptTuning()), ("whole", LoRA(modules_to_save=["lm_head"])), ("bias", LoRA(bias="all"))):
        attached: Any = method.attach(tiny_llama(), 1)
        attached.peft_config["default"].base_model_name_or_path = model
        attached.save_pretrained(str(tmp_path / name))
        saved[name] = str(tmp_path / name)
    for folder, said in (
        (model, "got '.*', a whole model"),
        (saved["prompt"], "got one of type PROMPT_TUNING"),
        (saved["whole"], "got one with modules_to_save"),
        (saved["bias"], "got one with bias"),
        (str(second.folder), "got one upon another"),
        (str(tmp_path / "nowhere"), "'.*nowhere' is none"),
    ):
        with pytest.raises(UsageError, match=said):
            LoRA(beneath=folder).attach(tiny_llama(), 1)


def test_an_adapter_of_another_base_is_refused(first: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(tiny_backbone_folder(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"Expected --method.beneath to be an adapter of '.*other', got"):
        LoRA(beneath=str(first.folder)).attach(other, 1)


def test_an_adapter_of_a_base_that_was_stored_otherwise_is_refused(first: Any, model: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(first.folder / "final_model", tmp_path / "adapter")
    (tmp_path / "adapter" / "quantization.json").write_text('{"quantize": "nf4"}')
    with pytest.raises(UsageError, match=r"on the base that it was trained on, one of nf4: '.*'; type --quantize nf4"):
        LoRA(beneath=str(tmp_path / "adapter")).attach(AutoModelForCausalLM.from_pretrained(model), 1)


def test_going_on_upon_another_adapter_is_refused(first: Any, second: Any, rows: list[Path], tmp_path: Path) -> None:
    shutil.copytree(second.folder / "final_model", tmp_path / "adapter")
    path = tmp_path / "adapter" / "beneath" / "adapter_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path)
    method = LoRA(rank=4, beneath=str(first.folder))
    with pytest.raises(UsageError, match=r"with the adapter beneath it; type --method.beneath"):
        lightning_ft.fit(model=str(tmp_path / "adapter"), data=rows[1], output=str(tmp_path / "r"), method=method, **OPTIONS)


def test_what_both_adapters_would_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Expected --method\.beneath without --method.trainable_tokens"):
        LoRA(beneath=str(tmp_path), trainable_tokens=[5]).attach(tiny_llama(), 1)


@pytest.mark.parametrize("options", [{"init": "pissa"}, {"bias": "all"}])
def test_a_model_that_was_loaded_again_has_no_start_to_go_back_to(options: Any) -> None:
    method = LoRA(**options)
    model = method.attach(tiny_llama(), 1)
    with method.reference(model):
        pass
    object.__delattr__(model, "initial_adapter")
    with pytest.raises(NotImplementedError, match="its start was not kept"), method.reference(model):
        pass
