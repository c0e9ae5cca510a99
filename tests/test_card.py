from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_ft.config import TrainingConfig
from lightning_ft.data.render import Template
from lightning_ft.run.card import ModelWriter
from lightning_ft.testing.models import tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, model: Any, template: str = "auto", base: str = "owner/base") -> str:
    """The card of a folder written for `model`."""
    tokenizer = tiny_tokenizer()
    config = TrainingConfig(model=base, data=["x"])
    folder.mkdir()
    ModelWriter(lambda: model, tokenizer, Template.resolve(template, tokenizer), config, {"method": "full", "data": "x"})(
        folder
    )
    return (folder / "README.md").read_text()


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_a_model_loads_again_with_its_template(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_llama()
    card = write(tmp_path / "a", model, "alpaca")
    assert front_matter(card) == {
        "base_model": "owner/base", "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lightning-ft"],
    }  # fmt: skip
    assert "| method | full |\n| data | x |\n" in card
    assert "from transformers import AutoModelForCausalLM\n" in card
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    assert all((again[name] == value).all() for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert "### Instruction" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_an_adapter_says_how_it_is_loaded(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    card = write(tmp_path / "a", model)
    assert front_matter(card)["library_name"] == "peft"
    assert "from peft import AutoPeftModelForCausalLM\n" in card
    assert "# Fine-tuned adapter of owner/base" in card
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()
    layers = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert layers == sorted(layers), "peft's sets have another order in each process"
    assert len(layers) > 5
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_an_odd_name_is_still_yaml(tmp_path: Path) -> None:
    base = "/models/a: b #c/[x]"
    assert front_matter(write(tmp_path / "a", tiny_llama(), base=base))["base_model"] == base


def test_an_adapter_names_the_commit_of_a_hubs_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    for name, commit in (("hub", "0123abc"), ("folder", None)):
        base = tiny_llama()
        base.config._commit_hash = commit
        write(tmp_path / name, get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")))
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["revision"] == commit


@pytest.mark.parametrize(("closer", "stops"), [("<|im_end|>", 2), ("", 1)])
def test_a_saved_model_ends_its_answers_where_its_template_does(tmp_path: Path, closer: str, stops: int) -> None:
    """Without our code: a base's own end of text is seldom what closes a turn."""
    from transformers import AutoModelForCausalLM

    tokenizer: Any = tiny_tokenizer()
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + (closer or tokenizer.eos_token) + "{% endfor %}"
    if closer:
        tokenizer.add_special_tokens({"additional_special_tokens": [closer]})
    tokenizer.chat_template = source + "{% if add_generation_prompt %}assistant: {% endif %}"
    template, model = Template.resolve("chat", tokenizer), tiny_llama()
    model.resize_token_embeddings(len(tokenizer))
    (tmp_path / "a").mkdir()
    ModelWriter(lambda: model, tokenizer, template, TrainingConfig(model="m", data=["x"]), {})(tmp_path / "a")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "a").generation_config.eos_token_id
    expected = template.stop_tokens(tokenizer)
    assert len(expected) == stops
    assert (found if isinstance(found, list) else [found]) == list(expected)
