"""The core's own plugin, registered by the same door as everybody's: the identity of each hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer

    from lightning_ft.backbone import Backbone, BackboneSpec
    from lightning_ft.method import Method
    from lightning_ft.metric import Metric
    from lightning_ft.objective import Objective
    from lightning_ft.task import Task


@hookimpl
def register_methods() -> Iterable[type[Method]]:
    """Full fine-tuning."""
    from lightning_ft.builtin import Full

    return [Full]


@hookimpl
def register_objectives() -> Iterable[type[Objective]]:
    """Supervised fine-tuning."""
    from lightning_ft.builtin import SFT

    return [SFT]


@hookimpl
def register_tasks() -> Iterable[type[Task]]:
    """Conversations as the OpenAI format has them, and raw text."""
    from lightning_ft.builtin import Messages, RawText

    return [Messages, RawText]


@hookimpl
def register_metrics() -> Iterable[type[Metric]]:
    """What the likelihoods alone say."""
    from lightning_ft.likelihood import BitsPerByte, Loss, Perplexity, TokenAccuracy

    return [Loss, Perplexity, TokenAccuracy, BitsPerByte]


@hookimpl
def register_optimizers() -> Iterable[type[Optimizer]]:
    """AdamW and SGD of torch."""
    from torch.optim import SGD, AdamW

    return [AdamW, SGD]


@hookimpl(trylast=True)
def load_backbone(spec: BackboneSpec) -> Backbone | None:
    """Any causal language model that transformers loads."""
    from lightning_ft.backbone import load_causal_lm
    from lightning_ft.errors import UsageError

    if spec.quantization is not None:
        raise UsageError(
            f"Expected an installed plugin that loads weights as --quantize {spec.quantization.quantize}, found none; install "
            "one (`lightning-ft plugins list` shows what is there), or leave --quantize out."
        )
    return load_causal_lm(spec)
