"""Ways to compute a step that not every method, strategy or machine can take: refused before weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    import torch

    from lightning_ft.config import TrainingConfig
    from lightning_ft.method import Method


def check_ways(config: TrainingConfig, method: Method, device: torch.device, *, whole: bool) -> None:
    """Refuse what would fail, or be something else than was asked for.

    Args:
        config: The run's options.
        method: What trains.
        device: Of this process.
        whole: Whether every process holds the whole model.

    Raises:
        UsageError: the method takes no recomputed activations, or no packed rows; layers cannot be compiled here, or not
            under this strategy.
    """
    if config.gradient_checkpointing and not method.can_checkpoint:
        raise UsageError(f"Method {method.name} does not work with recomputed activations; leave --gradient_checkpointing out.")
    if config.packing == "on" and not method.can_pack:
        raise UsageError(f"Method {method.name} cannot keep packed documents apart; type --packing off.")
    check_offload(config, device.type)
    if not config.compile:
        return
    if not whole:
        raise UsageError(
            f"Expected --strategy auto or ddp with --compile, which is not made for layers in shards; got {config.strategy}."
        )
    from lightning_ft.engine.compiled import check_compiler

    check_compiler(device)


def check_offload(config: TrainingConfig, device: str) -> None:
    """Refuse `--activation_offload` on a CPU.

    Raises:
        UsageError: it is.
    """
    if config.activation_offload and device == "cpu":
        raise UsageError(
            "Expected a GPU for --activation_offload, found none: activations are in the host's memory already; leave it out."
        )
