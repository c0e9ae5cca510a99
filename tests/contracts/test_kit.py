"""The kit finds what it is there to find: one broken task, metric and objective per clause."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from lightning_ft.builtin import SFT, Messages
from lightning_ft.metric import Metric, RowMetric
from lightning_ft.testing import check_metric, check_objective, check_task, stranger
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder, tiny_model
from lightning_ft.types import Conversation, LossOutput, LossTerm, Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from lightning_ft.types import Batch, Example, ScoredRow


def embedding(model: PreTrainedModel) -> Tensor:
    return cast("Tensor", model.get_input_embeddings().weight)


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


@pytest.mark.parametrize("name", ["lightning_ft", "lightning_ft.api", "lightning_ft_methods", "lightning.pytorch"])
def test_a_stranger_has_nothing_of_ours(name: str) -> None:
    code = "import sys; from lightning_ft.testing import stranger as s; sys.meta_path.insert(0, s.Locked())"
    gone = f"[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('lightning')]; import {name}"
    done = subprocess.run([sys.executable, "-c", f"{code}; {gone}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: '{name.partition('.')[0]}' is not for a stranger" in done.stderr
    assert stranger.Locked.find_spec("peft") is None


def test_pytest_plugin_imports_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'lightning', 'peft', 'datasets') if m in sys.modules]"
    code = f"import sys; import lightning_ft.testing.fixtures; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
