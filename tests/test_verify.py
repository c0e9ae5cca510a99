"""What decides a way of the hot path: the check of it, and what is known of it already."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lightning_ft.engine import verify
from lightning_ft.engine.head import head_path, take_path
from lightning_ft.engine.model import base_model
from lightning_ft.engine.verify import verify_head
from tests.test_loss import make, padded


def test_a_known_way_is_taken_without_a_forward_pass_where_the_output_layer_is_plain() -> None:
    known, plain = head_path(make("llama")), make("llama")
    adapted = get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["lm_head"]))

    def called(*_: object) -> None:
        raise AssertionError("the model runs")

    for model in (plain, adapted):
        handle = base_model(model).register_forward_pre_hook(called)
        take_path(model, known)
        if model is plain:
            assert head_path(model) is known
        handle.remove()
    assert head_path(adapted).name == "selected"


@pytest.mark.parametrize("at", [1, 2], ids=["the full logits", "the way itself"])
def test_a_way_is_kept_where_there_is_no_memory_to_compare_it(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, whole = make("llama"), [0], verify._loss_and_gradients

    def short(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(*args)

    monkeypatch.setattr(verify, "_loss_and_gradients", short)
    assert verify_head(model, padded()).endswith("(not compared with the full logits: there is no memory for that).")
    assert head_path(model).name == "chunked"


def test_differences_are_those_of_whole_tensors_though_they_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_PIECE", 7)
    one, other = torch.randn(5, 9).T, torch.randn(9, 5)
    assert verify._norm(one) == pytest.approx(float(one.double().norm()))
    assert verify._norm(one, other) == pytest.approx(float((one.double() - other.double()).norm()))
    assert verify._norm(torch.tensor(3.0), torch.tensor(5.0)) == 2.0
