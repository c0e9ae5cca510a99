"""From a name to a model: what each kind of name means, what is checked before weights are read, and what comes out."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.backbone import BackboneSpec, check_folder, load_causal_lm, load_config, load_tokenizer, read_json
from lightning_ft.errors import UsageError
from lightning_ft.loading import Location, embedded_folder, load, locate
from lightning_ft.testing.models import tiny_backbone_folder, tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter whose B is not zero, saved by peft."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(load_causal_lm(BackboneSpec(model=str(base))).model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the base to damage."""
    shutil.copytree(base, tmp_path / "model")
    return tmp_path / "model"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[257, 40, 41, 42]])).logits
    return found


# ---- names ------------------------------------------------------------------------------------------------------------


def test_what_a_name_means(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert locate("embedded") == Location("plain", str(embedded_folder()))
    assert locate(str(base)) == Location("plain", str(base))
    assert locate("owner/name", revision="abc") == Location("hub", "owner/name", revision="abc")
    assert locate(str(adapter)) == Location("adapter", str(base), adapter=adapter)
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "final_model")
    (run / "run.json").write_text("{}")
    assert locate(str(run)) == Location("adapter", str(base), adapter=run / "final_model")


def test_a_run_without_final_model_offers_its_newest_whole_checkpoint(base: Path, tmp_path: Path) -> None:
    from lightning_ft.atomic import whole_folder

    for step in (2, 10):
        with whole_folder(tmp_path / "checkpoints" / f"checkpoint-step-{step}") as folder:
            shutil.copytree(base, folder, dirs_exist_ok=True)
    (tmp_path / "run.json").write_text("{}")
    assert locate(str(tmp_path)).base.endswith("checkpoint-step-10")
    (tmp_path / "checkpoints" / "checkpoint-step-10" / "model.safetensors").write_bytes(b"x")
    assert locate(str(tmp_path)).base.endswith("checkpoint-step-2")


def test_an_adapter_brings_its_own_tokenizer_where_it_has_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert locate(str(adapter)).tokenizer == str(base)
    own = tmp_path / "own"
    shutil.copytree(adapter, own)
    tiny_tokenizer().save_pretrained(own)
    assert locate(str(own)).tokenizer == str(own)


def test_the_home_folder_is_meant_by_a_tilde(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    assert locate(f"~/{base.name}").base == str(base)


def test_a_folder_goes_before_a_hub_id(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, tmp_path / "owner" / "name")
    assert locate("owner/name").kind == "plain"
    with pytest.raises(UsageError, match="'owner/nam' is none"):  # its folder exists, so it is a mistyped path
        locate("owner/nam")


# ---- checks -----------------------------------------------------------------------------------------------------------


def test_a_whole_folder_passes(base: Path) -> None:
    check_folder(base, BackboneSpec(model=str(base)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"auto_map": {"AutoModel": "modeling.X"}},
            "needs Python code of its own (auto_map in config.json); read it",
        ),
        (
            {"_attn_implementation": "someone/kernel"},
            "sets the private key '_attn_implementation', which can load foreign code",
        ),
    ],
)
def test_a_config_that_would_run_code_is_refused(copy: Path, change: dict[str, Any], said: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError) as caught:
        check_folder(copy, BackboneSpec(model=str(copy)))
    assert said in str(caught.value)


def test_pickled_weights_are_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match="found pickled weights only; to start from random weights type"):
        check_folder(copy, BackboneSpec(model=str(copy)))
    check_folder(copy, BackboneSpec(model=str(copy), from_scratch=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{\n"a": 1,\n}', '{path}:3: expected JSON, got "'),
        (b"[1]", "{path}:1: expected a JSON object, got a list; "),
        (b'{"a": "\xe9"}', "{path}: expected JSON in UTF-8, got the byte 0xe9 at byte 7; "),
        (None, "Expected '{folder}' to hold a readable x.json, got: No such file or directory; "),
    ],
)
def test_json_files_are_refused_by_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert str(caught.value).startswith(said.format(path=path, folder=tmp_path))
    assert str(caught.value).endswith("copy the folder again from where the model came from.")


def test_a_config_names_its_type(copy: Path) -> None:
    assert load_config(BackboneSpec(model=str(copy))).model_type == "llama"
    (copy / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="to name its 'model_type'"):
        load_config(BackboneSpec(model=str(copy)))


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    lost = [name for name in weights if name.startswith("model.layers.1.mlp.")]
    save_file({k: v for k, v in weights.items() if k not in lost}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"weights for all of LlamaForCausalLM in .*, but 3 are missing \(model\.layers\.1"):
        load_causal_lm(BackboneSpec(model=str(copy)))


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path, "gpt2")
    model: Any = load_causal_lm(BackboneSpec(model=str(folder))).model
    assert model.lm_head.weight is model.transformer.wte.weight


# ---- what comes out ---------------------------------------------------------------------------------------------------


def test_weights_come_as_stored_or_as_asked(base: Path) -> None:
    stored: Any = load_causal_lm(BackboneSpec(model=str(base))).model
    assert stored.dtype == torch.float32
    assert torch.equal(logits(stored), logits(tiny_llama()))
    assert not stored.training
    assert stored.config._name_or_path == str(base.resolve())
    half: Any = load_causal_lm(BackboneSpec(model=str(base), dtype=torch.bfloat16)).model
    assert half.dtype == torch.bfloat16


def test_from_scratch_is_seeded_and_not_the_stored_weights(base: Path) -> None:
    def fresh(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return logits(load_causal_lm(BackboneSpec(model=str(base), from_scratch=True, dtype=torch.float32)).model)

    assert torch.equal(fresh(1), fresh(1))
    assert not torch.allclose(fresh(1), fresh(2))
    assert not torch.allclose(fresh(1), logits(tiny_llama()))


@pytest.mark.parametrize(
    ("change", "pad"),
    [
        ({}, "<|pad|>"),
        ({"pad_token": None, "unk_token": "<|start|>"}, "<|start|>"),
        ({"pad_token": None}, "<|stop|>"),
    ],
)
def test_there_is_always_a_pad_token(tmp_path: Path, change: dict[str, str | None], pad: str) -> None:
    tokenizer = tiny_tokenizer()
    for name, value in change.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == pad


def test_an_adapter_is_loaded_upon_its_base(base: Path, adapter: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    loaded = load(str(adapter), device="cpu")
    assert not loaded.model.training
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(str(adapter)))
    assert torch.equal(logits(loaded.model), expected)
    assert not torch.allclose(expected, logits(load(str(base), device="cpu").model))
    assert loaded.template.name == "chat"
    assert loaded.stop_tokens == (259,)


def test_the_shipped_model_is_whole() -> None:
    folder = embedded_folder()
    check_folder(folder, BackboneSpec(model=str(folder)))
    assert load_tokenizer(str(folder)).pad_token_id is not None
