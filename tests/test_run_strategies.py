"""Which strategies there are, and what they are refused with; the combinations are typed in tests/e2e/test_bad_input.py."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.registry import registry
from lightning_ft.run.choices import choose
from lightning_ft.run.meeting import PatientDDP
from lightning_ft.run.strategies import SHARDED, check_cuts, check_strategy, kind, lightning_strategy
from lightning_ft.run.world import World

if TYPE_CHECKING:
    from lightning_ft.run.choices import Choices


def config(strategy: str, **values: Any) -> TrainingConfig:
    return TrainingConfig(model="m", data=["x"], strategy=strategy, **values)


def chosen(given: TrainingConfig) -> Choices:
    return choose(given, registry())


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp", *sorted(SHARDED)])
def test_ours(name: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    given = config(name, method="full")
    check_strategy(given, chosen(given))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("ddp_spawn", {}, "got 'ddp_spawn'"), ("ddp_fork", {}, "got 'ddp_fork'"), ("xla", {}, "got 'xla'"),
        ("dpp", {}, r"got 'dpp'\. Did you mean 'ddp'\?"), ("fsdp_cpu_offload", {}, "got 'fsdp_cpu_offload'"),
        ("fsdp2", {"master_weights": "split"}, "with --strategy fsdp2, which are spread; got split"),
        ("tp", {"precision": "fp16"}, "bf16 or fp32 with --strategy tp; got fp16"),
    ],
)  # fmt: skip
def test_refused(name: str, values: dict[str, Any], said: str) -> None:
    given = config(name, method="full", **values)
    with pytest.raises(UsageError, match=said):
        check_strategy(given, chosen(given))


def test_half_a_short_time_is_for_asking_who_is_lost() -> None:
    made = [lightning_strategy(config("ddp", rank_timeout=t), World(2, 2, 0), in_turns=False) for t in (1800.0, 10.0)]
    assert [strategy.wait.total_seconds() for strategy in made] == [1780.0, 5.0]
    assert [strategy._timeout.total_seconds() for strategy in made] == [1780.0, 600.0], "until they have met"


def test_architectures_that_nothing_says_how_to_cut() -> None:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    two, given = World(2, 2, 0, together=2), config("tp", method="full")
    for known in (LlamaConfig(), Qwen3Config()):
        check_cuts(given, two, known)
    with pytest.raises(UsageError, match=r"the plan of gpt2 is none; type --strategy fsdp2\.$"):
        check_cuts(given, two, GPT2Config())
    odd: Any = LlamaConfig()
    odd.base_model_tp_plan = {"layers.*": "ep_router"}
    with pytest.raises(UsageError, match="the plan of llama names ep_router"):
        check_cuts(given, two, odd)


def test_kinds() -> None:
    assert [kind(name) for name in ("auto", "ddp", "tp", "fsdp2", None)] == ["whole", "whole", "sharded", "sharded", None]
    for name, size, turns in (("ddp", 2, True), ("auto", 2, False), ("ddp", 1, False)):
        made = lightning_strategy(config(name, rank_timeout=7.0), World(size, size, 0), in_turns=turns)
        assert isinstance(made, PatientDDP)
        assert made.wait == timedelta(seconds=3.5)
        assert made._ddp_kwargs == {"find_unused_parameters": turns}
    assert lightning_strategy(config("auto"), World(1, 1, 0), in_turns=False) == "auto"
