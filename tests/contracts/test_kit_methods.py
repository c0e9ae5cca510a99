"""The kit finds what it is there to find: for every clause of a method's contract one that breaks it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
import torch

from lightning_ft.builtin import Full
from lightning_ft.errors import UsageError
from lightning_ft.testing import check_method
from lightning_ft.testing.methods import METHOD_CLAUSES, Trained, trained
from lightning_ft.testing.models import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lightning_ft.method import Method


@dataclass(frozen=True)
class Undocumented(Full):
    """An option without a docstring."""

    rate: float = 1.0


@dataclass(frozen=True)
class Idle(Full):
    """Nothing trains."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        return model.requires_grad_(False).requires_grad_(False)


@dataclass(frozen=True)
class Leaky(Full):
    """Changes a frozen weight after each step."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        model.requires_grad_(True)
        model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]  # transformers'
        return model

    def on_step(self, model: nn.Module, step: int) -> None:
        model.get_input_embeddings().weight.data.mul_(1.001)  # type: ignore[operator]  # transformers'


@dataclass(frozen=True)
class Undeclared(Full):
    """Trains all weights but does not say so."""

    trains_base: ClassVar[bool] = False


@dataclass(frozen=True)
class Forgetful(Full):
    """Stores its state in half precision."""

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.bfloat16() for name, tensor in super().trainable_state(model).items()}


@dataclass(frozen=True)
class Credulous(Full):
    """Takes a state with any names."""

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        model.load_state_dict(state, strict=False)


@dataclass(frozen=True)
class Pretender(Full):
    """Hands out the tuned model as its own reference."""

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        yield model


@dataclass(frozen=True)
class Spoiler(Full):
    """Merges into other weights."""

    def merge(self, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        return model


@dataclass(frozen=True)
class Noisy(Full):
    """Starts elsewhere than the base."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        model = super().attach(model, total_steps)
        embedding(cast("Any", model)).data.mul_(1.5)
        return model


@dataclass(frozen=True)
class Modest(Full):
    """Says that it starts elsewhere, and does not."""

    starts_as_base: ClassVar[bool] = False


@dataclass(frozen=True)
class Climbing(Full):
    """Goes up the gradient."""

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]] | None:
        return [{"params": list(model.parameters()), "maximize": True}]


@dataclass(frozen=True)
class Unplaced(Full):
    """Forgets where a document begins."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        def forget(_: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {name: value for name, value in given.items() if name != "position_ids"}

        model = super().attach(model, total_steps)
        model.register_forward_pre_hook(forget, with_kwargs=True)
        return model


@dataclass(frozen=True)
class Counting(Full):
    """In training a layer's output depends on how often it was called."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        calls = [0]

        def count(layer: nn.Module, _: Any, out: Any) -> Any:
            calls[0] += layer.training
            return out * torch.full_like(out, 1 + 0.01 * calls[0]) if layer.training else out  # a tensor is recomputed

        model = super().attach(model, total_steps)
        cast("Any", model).model.layers[0].mlp.register_forward_hook(count)
        return model


@dataclass(frozen=True)
class Overflowing(Full):
    """Cannot be computed in bfloat16."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        weight = embedding(cast("Any", model))
        if weight.dtype == torch.bfloat16:
            weight.data.fill_(float("inf"))
        return super().attach(model, total_steps)


@dataclass(frozen=True)
class Stray(Full):
    """Merges into a model with one parameter too many."""

    def merge(self, model: nn.Module) -> nn.Module:
        model.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
        return model


@dataclass(frozen=True)
class Choosy(Full):
    """Refuses every model."""

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        raise UsageError("not this one")


@pytest.mark.parametrize(
    ("method", "clause"),
    [(Undocumented, "options"), (Idle, "gradients"), (Leaky, "frozen"), (Undeclared, "frozen"), (Forgetful, "state"),
     (Credulous, "state"), (Pretender, "reference"), (Spoiler, "reload"), (Choosy, "families"), (Noisy, "start"),
     (Modest, "start"), (Climbing, "loss"), (Unplaced, "packing"), (Counting, "checkpointing"), (Overflowing, "precision"),
     (Stray, "merge")],
)  # fmt: skip
def test_broken_method(method: type[Method], clause: str) -> None:
    """None of the clauses before it complains."""
    with pytest.raises(AssertionError, match=f"breaks the clause '{clause}'"):
        check_method(method, families=("llama",))


def test_every_clause_has_a_method_that_breaks_it() -> None:
    (mark,) = (mark for mark in test_broken_method.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]  # pytest adds it
    assert {clause for _, clause in mark.args[1]} == {*METHOD_CLAUSES, "families"}


def test_methods_of_one_name_are_trained_apart() -> None:
    def namesake(rate: float) -> type[Method]:
        @dataclass(frozen=True)
        class Same(Full):
            """As another."""

            scale: ClassVar[float] = rate

        return Same

    for made in (namesake(1.0), namesake(2.0)):
        run = trained(made, "llama")
        assert isinstance(run, Trained)
        assert type(run.method) is made
        assert trained(made, "llama") is run


def embedding(model: PreTrainedModel) -> Tensor:
    return cast("Tensor", model.get_input_embeddings().weight)


def test_sound_method() -> None:
    assert check_method(Full) == FAMILIES
    assert check_method(Full, families=("gpt2",)) == ("gpt2",)
