"""Soft prompts are what they say: vectors in front of the input or of the keys and values, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from lightning_ft_methods.prompts import PrefixTuning, PromptTuning, PTuning, PTuningV2

import lightning_ft
from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.testing.methods import attach, check_method, inputs, logits, train
from lightning_ft.testing.models import tiny_backbone_folder, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.method import Method

VARIANTS: list[Method] = [
    PromptTuning(virtual_tokens=3, init="random"),
    PTuning(virtual_tokens=3, encoder="lstm"),
    PrefixTuning(virtual_tokens=3, encoder_size=16),
    PTuningV2(virtual_tokens=1),
]
ALL: list[Method] = [PromptTuning(), PTuning(), PrefixTuning(), PTuningV2()]


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_a_variant_keeps_the_contract(method: Method) -> None:
    check_method(method)


def test_prompt_tuning_puts_vectors_before_the_embedded_text() -> None:
    """By hand on the base model: f([P; E(x)]), of which the positions of x count."""
    run = train(PromptTuning(virtual_tokens=5), "llama")
    prompt = cast("Any", run.model).get_prompt(batch_size=2)
    assert prompt.shape == (2, 5, 32)
    base = cast("Any", tiny_model("llama")).eval()
    with torch.no_grad():
        embedded = base.get_input_embeddings()(inputs())
        expected = base(inputs_embeds=torch.cat([prompt, embedded], 1)).logits[:, 5:]
    torch.testing.assert_close(logits(run.model), expected, atol=1e-5, rtol=1e-5)


def test_vectors_of_the_vocabulary_are_the_start() -> None:
    table = cast("Any", tiny_model("llama")).get_input_embeddings().weight.detach()
    prompt = cast("Any", attach(PromptTuning(virtual_tokens=4), "llama")).get_prompt(batch_size=1)[0]
    assert all(any(torch.equal(vector, token) for token in table) for vector in prompt.detach())


def test_a_text_is_the_start(tmp_path: Path) -> None:
    """One token per byte: `Hi` twice."""
    from transformers import AutoModelForCausalLM

    folder = tiny_backbone_folder(tmp_path)
    model = PromptTuning(virtual_tokens=4, init="text", init_text="Hi").attach(AutoModelForCausalLM.from_pretrained(folder), 1)
    table = cast("Any", model).get_base_model().get_input_embeddings().weight
    prompt = cast("Any", model).get_prompt(batch_size=1)[0]
    assert torch.equal(prompt[:2], prompt[2:])
    assert all(any(torch.equal(vector, token) for token in table) for vector in prompt)
    with pytest.raises(UsageError, match=r"Expected a model from a folder or the hub for --method.init text"):
        attach(PromptTuning(init="text", init_text="Hi"), "llama")


@pytest.mark.parametrize("method", [PTuningV2(virtual_tokens=3), PrefixTuning(virtual_tokens=3)], ids=lambda m: m.name)
def test_keys_and_values_stand_before_those_of_every_layer(method: Method) -> None:
    run = train(method, "llama")
    cache = cast("Any", run.model).get_prompt(batch_size=1)
    assert cache.get_seq_length() == 3
    base = cast("Any", tiny_model("llama")).eval()
    with torch.no_grad():
        expected = base(input_ids=inputs()[:1], past_key_values=cache).logits
    torch.testing.assert_close(logits(run.model, inputs()[:1]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_nothing_is_merged_and_nothing_packed(method: Method) -> None:
    with pytest.raises(NotMergeableError, match=f"Method {method.name} adds inputs, not weights"):
        method.merge(attach(method, "llama"))
    assert not method.can_pack


@pytest.mark.parametrize("method", [PromptTuning(virtual_tokens=40), PTuningV2(virtual_tokens=40)], ids=lambda m: m.name)
def test_vectors_take_their_positions_from_the_rows(method: Method, tmp_path: Path) -> None:
    """GPT-2 looks each position up in a table: a row as long as that, behind the vectors, would be beyond its end."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{n} " * 400}) + "\n" for n in range(12)))
    model = tiny_backbone_folder(tmp_path / "model", "gpt2")
    places = json.loads((model / "config.json").read_text())["n_positions"]
    options: dict[str, Any] = {"max_steps": 1, "batch_size": 2, "max_lost": 1.0, "preflight": False, "precision": "fp32"}
    run = lightning_ft.fit(
        model=str(model), data=rows, task="text", method=method, verdict_rows=2, retention="none",
        output=str(tmp_path / "run"), **options,
    )  # fmt: skip
    assert json.loads((run.folder / "ledger.json").read_text())["max_length"] == places - 40
    with pytest.raises(
        UsageError, match=rf"Expected --max_length from 1 to {places - 40}, the model's positions; got {places}"
    ):
        lightning_ft.fit(model=str(model), data=rows, task="text", method=method, max_length=places, **options)
    with pytest.raises(
        UsageError, match=rf"the model's {places} positions to the rows, got one that takes {places} before each"
    ):
        lightning_ft.fit(model=str(model), data=rows, task="text", method=PromptTuning(virtual_tokens=places), **options)


@pytest.mark.parametrize("method", [PTuning(), PrefixTuning()], ids=lambda method: method.name)
def test_a_saved_prompt_without_its_encoder_is_not_trained_on(method: Method, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 12)
    options: dict[str, Any] = {"max_steps": 2, "precision": "fp32", "verdict_rows": 0, "preflight": False, "split": [1.0, 0.0]}
    model = tiny_backbone_folder(tmp_path / "model")
    run = lightning_ft.fit(model=str(model), data=rows, method=method, output=str(tmp_path / "run"), **options)
    with pytest.raises(UsageError, match=f"for --method {method.name}, whose saved adapters cannot be trained on"):
        lightning_ft.fit(model=str(run.folder), data=rows, method=method, output=str(tmp_path / "other"), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptTuning(virtual_tokens=0), "Expected --method.virtual_tokens to be a whole number of at least 1; got 0"),
        (
            lambda: PromptTuning(init=cast("Any", "zero")),
            "Expected --method.init to be one of vocabulary, text, random; got 'zero'",
        ),
        (lambda: PromptTuning(init_text="Hi"), "Expected --method.init text together with --method.init_text TEXT"),
        (lambda: PTuning(encoder=cast("Any", "gru")), "Expected --method.encoder to be one of mlp, lstm; got 'gru'"),
        (lambda: PTuning(dropout=0.1), "Expected --method.dropout 0 for --method.encoder mlp, which has none; got 0.1"),
        (lambda: PrefixTuning(encoder_size=0), "Expected --method.encoder_size to be a whole number of at least 1; got 0"),
    ],
)
def test_wrong_options_are_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
