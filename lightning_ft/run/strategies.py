"""Names of strategies, what each of them can be combined with, and Lightning's object for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft.optim import is_elementwise
from lightning_ft.run.ranks import leave_time, patience

if TYPE_CHECKING:
    from lightning_ft.config import TrainingConfig
    from lightning_ft.run.choices import Choices
    from lightning_ft.run.world import World

OURS = ("auto", "ddp", "fsdp2", "tp", "fsdp2_tp")
WHOLE = ("auto", "ddp")
"""Those under which every process holds the whole model on its device."""
SHARDED = frozenset({"fsdp2", "tp", "fsdp2_tp"})
"""Those under which a process has a part of the model."""
CUTS = frozenset({"tp", "fsdp2_tp"})
"""Those under which processes hold a layer together."""
SPREADS = frozenset({"fsdp2", "fsdp2_tp"})
"""Those under which a parameter is spread over processes, and gathered to compute."""
RENAMED = {"fsdp": "fsdp2"}
"""What users type who know its first version, which no CPU and no gradient clipping goes with."""


FOREIGN = ("fsdp", "deepspeed", "spawn", "fork", "notebook", "xla", "tpu")
"""Parts of names of Lightning's strategies that take backward pass, clipping or checkpoints into their own hands, that leave
what was trained in a process that has ended, or that are for devices which nothing here knows."""


def kind(name: str | None) -> str | None:
    """Whose checkpoints a strategy reads: `sharded` ones, or those of a `whole` model; None for None."""
    return None if name is None else "sharded" if name in SHARDED else "whole"


def check_strategy(config: TrainingConfig, choices: Choices) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        UsageError: an unknown strategy, or one that its method, optimiser or precision cannot be combined with.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    name = config.strategy
    known_there = StrategyRegistry.available_strategies()
    theirs = [known for known in known_there if known not in OURS and not any(part in known for part in FOREIGN)]
    known = (*OURS, *RENAMED, *theirs)
    if name.startswith("deepspeed"):
        raise UsageError(
            f"Expected a strategy whose runs are clipped, saved and resumed as all others; --strategy {name} does that by ways "
            "of its own; type --strategy fsdp2, which spreads weights, gradients and optimiser state, too."
        )
    if name not in known:
        raise UsageError(f"Expected --strategy to be one of {', '.join(known)}; got '{name}'.{did_you_mean(name, known)}")
    if RENAMED.get(name, name) in SHARDED:
        _check_sharded(RENAMED.get(name, name), config, choices)


def _check_sharded(name: str, config: TrainingConfig, choices: Choices) -> None:
    method = choices.method
    if not method.can_shard:
        raise UsageError(
            f"Method {method.name} needs whole matrices in each process, which --strategy {name} does not keep; type ddp."
        )
    if method.trains_rows:
        raise UsageError(
            f"Expected --strategy auto or ddp for --method {method.name} with rows of tokens, as rows beside a matrix that "
            f"lies in parts cannot train; got {name}; leave --strategy or --method.trainable_tokens out."
        )
    if name in CUTS and not method.trains_base:
        raise UsageError(
            f"Method {method.name} stands beside layers, which --strategy {name} cuts in pieces; type --strategy fsdp2."
        )
    if not is_elementwise(choices.optimizer):
        raise UsageError(
            f"Optimiser {choices.optimizer.__name__} needs whole matrices in each process, which --strategy {name} does not "
            "keep; type --optimizer AdamW, or --strategy ddp."
        )
    if config.master_weights == "split":
        raise UsageError(f"Expected --master_weights fp32 or none with --strategy {name}, which are spread; got split.")
    if config.precision == "fp16":
        raise UsageError(f"Expected --precision bf16 or fp32 with --strategy {name}; got fp16.")


def check_cuts(config: TrainingConfig, world: World, model_config: Any) -> None:
    """Refuse a model whose layers cannot be cut into so many pieces.

    Args:
        config: The run's options.
        world: Its processes.
        model_config: The model's transformers config.

    Raises:
        UsageError: transformers knows no way to cut this architecture, or heads or features are not divisible.
    """
    if config.strategy not in CUTS or world.together == 1:
        return
    from lightning_ft.engine.sharding import SHARED, styles

    text, pieces = model_config.get_text_config(), world.together
    plan = getattr(text, "base_model_tp_plan", None) or {}
    odd = sorted(set(plan.values()) - {*styles(), SHARED})
    if not plan or odd:
        why = f"names {', '.join(odd)}" if odd else "is none"
        raise UsageError(
            f"Expected an architecture that can be cut for --strategy {config.strategy}; the plan of {text.model_type} {why}; "
            "type --strategy fsdp2."
        )
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    for what, size in (("key-value heads", heads), ("heads", text.num_attention_heads), ("features", text.intermediate_size)):
        if size % pieces:
            raise UsageError(
                f"Expected the model's {size} {what} to be divisible by the {pieces} processes that hold a layer together; "
                "type another --tensor_parallel."
            )


def lightning_strategy(config: TrainingConfig, world: World, *, in_turns: bool) -> Any:
    """What Lightning's Trainer is given.

    Args:
        config: The run's options.
        world: Its processes.
        in_turns: Whether other parameters train in other steps.
    """
    name, wait = config.strategy, timedelta(seconds=config.rank_timeout - patience(config.rank_timeout))
    leave_time(config.rank_timeout)
    if name in SHARDED:
        from lightning_ft.run.sharded import ShardedStrategy

        return ShardedStrategy(world.data_size, world.together, wait)
    if name == "ddp" or (name == "auto" and world.size > 1):
        from lightning_ft.run.meeting import PatientDDP

        return PatientDDP(wait, find_unused_parameters=in_turns)
    return name
