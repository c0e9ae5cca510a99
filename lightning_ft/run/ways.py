"""Ways to compute a step that not every method, strategy, machine or model can take.

What the user asks for is refused before weights are loaded; what saves work by itself is compared with the plain way first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.datamodule import FineTuneData
    from lightning_ft.method import Method
    from lightning_ft.module import FineTuner


def check_ways(config: TrainingConfig, method: Method, device: torch.device, *, whole: bool) -> None:
    """Refuse what would fail, or be something else than was asked for.

    Args:
        config: The run's options.
        method: What trains.
        device: Of this process.
        whole: Whether every process holds the whole model.

    Raises:
        UsageError: the method takes no recomputed activations, or no packed rows; layers cannot be compiled here; a strategy
            cannot have them compiled, or its checkpoints written behind the training.
    """
    if config.gradient_checkpointing and not method.can_checkpoint:
        raise UsageError(f"Method {method.name} does not work with recomputed activations; leave --gradient_checkpointing out.")
    if config.packing == "on" and not method.can_pack:
        raise UsageError(f"Method {method.name} cannot keep packed documents apart; type --packing off.")
    check_offload(config, device.type)
    if config.save_behind and not whole:
        raise UsageError(
            f"Expected --strategy auto or ddp with --save_behind, as shards are saved by all processes together; got "
            f"{config.strategy}."
        )
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


def take_ways(module: FineTuner, data: FineTuneData) -> Iterator[str]:
    """Let a model, whole in this process, and its rows take the ways that leave work out and change no result.

    Yields:
        Lines for the log.
    """
    from lightning_ft.data.prefix import common_prefix, common_prompt
    from lightning_ft.engine.model import base_model
    from lightning_ft.engine.verify import verify_head, verify_last_layer, verify_shared

    model = module.model
    batch = data.build(0).micro[0].to(next(model.parameters()).device)  # Lightning has not placed the module yet
    yield f"loss: {verify_head(model, batch)} {verify_last_layer(model, batch)}".rstrip()
    if getattr(base_model(model).config.get_text_config(), "output_router_logits", False):
        yield "loss: without the auxiliary loss of the model's router, which its config asks for, but no objective has"
    # Noise on embeddings would have to be each document's own; a compiled layer is told of nothing but the borders.
    if data.schedule.packed and data.stream is None and module.noise is None and not module.config.compile:
        table, vocabulary = data.tables["train"], int(base_model(model).config.get_text_config().vocab_size)
        prompt, saved = common_prompt(table)
        prefix = common_prefix(table) if table.texts == 1 else 0
        difference = verify_shared(model, prompt or prefix, vocabulary, pairs=prompt > 0)
        if difference is not None:
            data.share(prefix, prompts=prompt > 0)
            both = f"the prompt of both answers of a pair ({saved:.0%} of all tokens) is"
            what = both if prompt else f"the {prefix} tokens that all rows begin with are"
            yield f"packing: {what} computed once in a packed row, equal to {difference:.1e}"
