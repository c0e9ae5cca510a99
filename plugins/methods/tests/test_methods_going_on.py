"""An adapter is trained on as the function that it is, or not at all; and it computes in bfloat16 without autocast."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.lora import LoRA
from torch import nn

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.loading import load
from lightning_ft.testing.methods import logits
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_llama, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "verdict_rows": 0, "preflight": False, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(40)))
    return path


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (LoRA(init="pissa"), LoRA(), "init_lora_weights is pissa there and True here"),
        (LoRA(trainable_tokens=[50, 60]), LoRA(), "trainable_token_indices is .* there and None here"),
        (LoRA(trainable_tokens=[50, 60]), LoRA(trainable_tokens=[50, 70]), "trainable_token_indices is"),
        (LoRA(trainable_tokens=[50, 60]), LoRA(trainable_tokens=[60, 50]), "trainable_token_indices is"),
        (LoRA(rank=4), LoRA(), "r is 4 there and 16 here"),
        (LoRA(alpha=8), LoRA(), "lora_alpha is 8 there and 32 here"),
        (LoRA(use_rslora=True), LoRA(), "use_rslora is True there and False here"),
    ],
)
def test_another_function_is_refused(first: LoRA, then: LoRA, said: str, rows: Path, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    run = lightning_ft.fit(model=model, data=rows, method=first, output=str(tmp_path / "first"), precision="fp32", **OPTIONS)
    with pytest.raises(UsageError, match=said):
        lightning_ft.fit(model=str(run.folder), data=rows, method=then, output=str(tmp_path / "then"), **OPTIONS)
    assert not (tmp_path / "then").exists(), "what is refused leaves nothing that blocks --output"
    lightning_ft.fit(model=str(run.folder), data=rows, method=first, output=str(tmp_path / "then"), precision="fp32", **OPTIONS)


def test_other_layers_are_refused_with_what_to_type(rows: Path, tmp_path: Path) -> None:
    model, narrow = str(tiny_backbone_folder(tmp_path / "model")), LoRA(target_modules=["v_proj", "q_proj"])
    options = {**OPTIONS, "data": rows, "precision": "fp32"}
    run = lightning_ft.fit(model=model, method=narrow, output=str(tmp_path / "first"), **options)
    for other in (LoRA(), LoRA(target_modules=["q_proj"])):
        with pytest.raises(UsageError, match=r"other layers than it has; type --method.target_modules \[q_proj,v_proj\]\.$"):
            lightning_ft.fit(model=str(run.folder), method=other, output=str(tmp_path / "then"), **options)
    same = LoRA(target_modules=["self_attn.q_proj", "v_proj"])
    lightning_ft.fit(model=str(run.folder), method=same, output=str(tmp_path / "then"), **options)


def test_a_start_that_leaves_the_base_alone_may_differ(rows: Path, tmp_path: Path) -> None:
    model = str(tiny_backbone_folder(tmp_path / "model"))
    options = {**OPTIONS, "data": rows, "precision": "fp32"}
    run = lightning_ft.fit(model=model, method=LoRA(init="gaussian"), output=str(tmp_path / "first"), **options)
    options["learning_rate"] = 1e-12
    then = lightning_ft.fit(model=str(run.folder), method=LoRA(), output=str(tmp_path / "then"), **options)
    last, first = ([line["val_loss"] for line in one.metrics if "val_loss" in line][-1] for one in (run, then))
    assert first == pytest.approx(last, rel=1e-5), "it goes on as the function that it was"


WIDE = {
    "lm_head": LoRA(modules_to_save=["lm_head"]), "embedding": LoRA(modules_to_save=["embed_tokens"]),
    "norm": LoRA(modules_to_save=["norm"]), "gpt2 bias": LoRA(bias="all"), "gpt2 norm": LoRA(modules_to_save=["ln_f"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_what_trains_in_float32_within_a_bfloat16_model_needs_no_autocast(name: str, rows: Path, tmp_path: Path) -> None:
    """The default of a CPU with fast bfloat16: training, validation and the verdict's answers."""
    family: Family = "gpt2" if name.startswith("gpt2") else "llama"
    model = str(tiny_backbone_folder(tmp_path / "model", family))
    options = {**OPTIONS, "verdict_rows": 2, "max_new_tokens": 4, "precision": "bf16"}
    run = lightning_ft.fit(model=model, data=rows, method=WIDE[name], output=str(tmp_path / "run"), **options)
    assert run.verdict is not None
    loaded = load(str(run.folder)).model
    assert bool(logits(loaded).isfinite().all())


def test_a_module_to_save_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"modules_to_save to name modules of this model \(.*lm_head.*\); got nonsense"):
        LoRA(modules_to_save=["nonsense"]).attach(tiny_llama(), 1)


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        ("llama", "embed_tokens", {"modules_to_save": ["embed_tokens"]}),
        ("llama", "embed_tokens", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("llama", "model.embed_tokens", {"modules_to_save": ["model.embed_tokens"]}),
        ("llama", "model.embed_tokens", {"target_modules": ["model.embed_tokens", "q_proj"]}),
        ("llama", "model", {"modules_to_save": ["model"]}),
        ("gpt2", "lm_head", {"modules_to_save": ["lm_head"]}),
        ("gpt2", "lm_head", {"target_modules": ["lm_head", "c_attn"]}),
        ("gpt2", "transformer.wte", {"target_modules": ["transformer.wte", "c_attn"]}),
    ],
)
def test_rows_of_a_matrix_that_trains_whole_are_refused(family: Family, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"Expected --method.trainable_tokens without '{name}'"):
        LoRA(trainable_tokens=[5], **options).attach(tiny_model(family), 1)


def test_no_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Expected --method.trainable_tokens to name tokens"):
        LoRA(trainable_tokens=[])


@pytest.mark.parametrize("family", FAMILIES)
def test_widened_modules_merge_into_the_types_that_they_had(family: Family) -> None:
    method = LoRA(bias="all")
    model: Any = method.attach(nn.Module.to(tiny_model(family), torch.bfloat16), 1)
    assert logits(model).dtype == torch.float32
    assert {p.dtype for p in method.merge(model).parameters()} == {torch.bfloat16}


def test_an_adapter_of_the_embedding_goes_on(rows: Path, tmp_path: Path) -> None:
    model, method = str(tiny_backbone_folder(tmp_path / "model", "gpt2")), LoRA(target_modules=["wte", "c_attn"])
    options = {**OPTIONS, "data": rows, "precision": "fp32", "method": method}
    run = lightning_ft.fit(model=model, output=str(tmp_path / "first"), **options)
    further = lightning_ft.fit(model=str(run.folder), output=str(tmp_path / "then"), **{**options, "learning_rate": 1e-12})
    last = [line["val_loss"] for line in run.metrics if "val_loss" in line][-1]
    assert [line["val_loss"] for line in further.metrics if "val_loss" in line][-1] == pytest.approx(last, rel=1e-5)
