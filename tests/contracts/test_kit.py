"""The kit finds what it is there to find: one broken class per clause."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
import torch

from lightning_ft.builtin import SFT, Full, Messages
from lightning_ft.errors import UsageError
from lightning_ft.metric import Metric, RowMetric
from lightning_ft.testing import check_method, check_metric, check_objective, check_task
from lightning_ft.testing.methods import METHOD_CLAUSES, Trained, trained
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_model
from lightning_ft.types import Conversation, LossOutput, LossTerm, Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lightning_ft.method import Method
    from lightning_ft.types import Batch, Example, ScoredRow


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
    (mark,) = (mark for mark in test_broken_method.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
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


ROWS = [{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]}]


@dataclass(frozen=True)
class Greedy(Messages):
    """Matches any columns."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        return True


@dataclass(frozen=True)
class Mute(Messages):
    """Trains nothing."""

    def format(self, row: Mapping[str, Any]) -> Example:
        example = super().format(row)
        assert isinstance(example, Conversation)
        return Conversation(example.messages[:1])


@dataclass(frozen=True)
class Crashing(Messages):
    """Lets a TypeError out."""

    def format(self, row: Mapping[str, Any]) -> Example:
        return Conversation(tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]))


@dataclass(frozen=True)
class Careless(Messages):
    """Takes any row."""

    def format(self, row: Mapping[str, Any]) -> Example:
        return Conversation((Message("assistant", str(row.get("messages"))),))


@dataclass(frozen=True)
class Writing(Messages):
    """Changes the row."""

    def format(self, row: Mapping[str, Any]) -> Example:
        row["messages"].append({"role": "assistant", "content": "more"})
        return super().format({"messages": row["messages"][:2]})


@dataclass(frozen=True)
class Blind(Messages):
    """Does not know its own rows."""

    @classmethod
    def recognizes(cls, row: Mapping[str, Any]) -> bool:
        return False


@dataclass(frozen=True)
class Trusting(Messages):
    """Looks at rows that are not there."""

    @classmethod
    def recognizes(cls, row: Mapping[str, Any]) -> bool:
        return len(row["messages"]) > 0


@pytest.mark.parametrize(
    ("task", "clause"),
    [
        (Greedy, "columns"),
        (Blind, "columns"),
        (Trusting, "columns"),
        (Mute, "supervised"),
        (Crashing, "wrong rows"),
        (Careless, "wrong rows"),
        (Writing, "example"),
    ],
)
def test_broken_task(task: type[Messages], clause: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks the clause '{clause}'"):
        check_task(task, [{"messages": list(ROWS[0]["messages"])}])


class Backward(RowMetric):
    """Higher for wrong answers."""

    name = "backward"

    def score(self, row: ScoredRow) -> float:
        return float(row.prediction not in row.references)


class Sound(RowMetric):
    """Keeps the contract."""

    name = "sound"

    def score(self, row: ScoredRow) -> float:
        return float(row.prediction in row.references)


class Percent(RowMetric):
    """A share times 100."""

    name = "percent"
    percent = True

    def score(self, row: ScoredRow) -> float:
        return 100.0 * (row.prediction in row.references)


class Ragged(Metric):
    """As many statistics as tokens."""

    name = "ragged"

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        return [1.0] * row.tokens


class Aside(RowMetric):
    """Has its own idea of the value."""

    name = "aside"

    def score(self, row: ScoredRow) -> float:
        return float(row.prediction in row.references)

    def compute(self) -> Tensor:
        return super().compute() + 1


@pytest.mark.parametrize(
    ("metric", "clause"),
    [(Backward, "direction"), (Percent, "direction"), (Ragged, "statistics"), (Aside, "statistics")],
)
def test_broken_metric(metric: type[Metric], clause: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks the clause '{clause}'"):
        check_metric(metric)


def test_no_rows_are_not_taken_for_the_kit_s_own() -> None:
    check_metric(Sound)
    with pytest.raises(AssertionError, match="needs right and wrong rows, got none"):
        check_metric(Sound, right=[])
    with pytest.raises(AssertionError, match="needs right and wrong rows, got none"):
        check_metric(Sound, wrong=[])


@dataclass(frozen=True)
class Mean(SFT):
    """Returns means."""

    def __call__(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        term = super().__call__(model, batch).terms["nll"]
        return LossOutput({"nll": LossTerm(term.sum / term.count, term.count)})


@dataclass(frozen=True)
class Cut(SFT):
    """Detaches its loss."""

    def __call__(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        term = super().__call__(model, batch).terms["nll"]
        return LossOutput({"nll": LossTerm(term.sum.detach(), term.count)})


@dataclass(frozen=True)
class Deaf(SFT):
    """Takes label smoothing and does nothing with it."""

    def __call__(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        return super().__call__(model, batch)


@pytest.mark.parametrize(("objective", "clause"), [(Mean, "sums"), (Cut, "gradient"), (Deaf, "smoothing")])
def test_broken_objective(objective: type[SFT], clause: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks the clause '{clause}'"):
        check_objective(objective)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_seeded_and_leave_the_generator_alone(family: Family) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [embedding(model) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_folder_loads_with_transformers(tmp_path: Path, family: Family) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_backbone_folder(tmp_path, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert torch.equal(embedding(model), embedding(tiny_model(family)))
    assert [model.config.pad_token_id, model.config.eos_token_id] == [tokenizer.pad_token_id, tokenizer.eos_token_id]


def test_tiny_tokenizer_round_trips_and_masks_the_assistant(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "na\u00efve \u6771\u4eac\n  x"
    ids = tiny_tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tiny_tokenizer.decode(ids) == text
    chat: Any = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}],
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    trained = [i for i, on in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if on]
    assert tiny_tokenizer.decode(trained) == "bc<|stop|>"


def test_pytest_plugin_imports_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'lightning', 'peft', 'datasets') if m in sys.modules]"
    code = f"import sys; import lightning_ft.testing.fixtures; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
