"""What is rehearsed, the model of any depth that it is rehearsed on, and the account that comes of it."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.backbone import set_dropout
from lightning_ft.engine.verify import drops
from lightning_ft_plan.hollow import OPTIMIZER, PARTS, SMALL, WEIGHTS, Hollow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_ft.config import TrainingConfig
    from lightning_ft.engine.head import HeadPath
    from lightning_ft.method import Method
    from lightning_ft.objective import Objective

PACKING, START, VALIDATION = "packing check", "start", "validation"
"""Stages beside those of a step."""
LONGEST_PERIOD = 8
"""Layers after which a stack of different ones may repeat itself."""


@dataclass(frozen=True)
class Scene:
    """What all methods have in common."""

    config: TrainingConfig
    model_config: Any
    """Of transformers."""
    objective: Objective
    optimizer: type[torch.optim.Optimizer]
    optimizer_options: Mapping[str, Any]
    total_steps: int
    checks: Mapping[int, int] = field(default_factory=dict)
    """Bytes that the check of packed rows takes at the start, by those of a weight; see `packing`."""
    head: HeadPath | None = None
    """The way of the plain model's loss, which each method's takes that leaves the output layer a plain one."""

    @property
    def depth(self) -> int:
        """Decoder layers of the model."""
        return int(self.model_config.get_text_config().num_hidden_layers)

    @property
    def period(self) -> int:
        """Layers after which their types, and which of them are recomputed, repeat."""
        types = getattr(self.model_config.get_text_config(), "layer_types", None) or ["same"]
        fitting = (n for n in range(1, LONGEST_PERIOD + 1) if all(t == types[i % n] for i, t in enumerate(types)))
        # An input that leaves the memory is there while its layer runs, which one layer alone would not tell from all.
        least = 2 if self.config.activation_offload else 1
        return min(math.lcm(next(fitting, 1), max(1, int(self.config.gradient_checkpointing)), least), self.depth)


@dataclass(frozen=True)
class Account:
    """What a rehearsal found, or what follows for another depth."""

    trainable: float
    """Numbers that train."""
    parameters: float
    """Numbers of the model, without what the method adds."""
    widest: float
    """Numbers of the largest linear layer below the output head."""
    windows: Mapping[str, Mapping[str, float]]
    """Bytes by part at the worst moment of each stage."""
    flops: float
    """Of a step's largest micro-batch, forward and backward."""
    moved: float
    """Bytes that its operators read and write."""

    def at(self, other: Account, depth: float, own: int, others: int) -> Account:
        """The line through two rehearsals with `own` and `others` layers, at `depth` layers."""
        share = (depth - own) / (others - own)

        def line(a: float, b: float) -> float:
            return max(0.0, a + (b - a) * share)

        windows = {
            name: {part: line(parts.get(part, 0), other.windows[name].get(part, 0)) for part in PARTS}
            for name, parts in self.windows.items()
            if name in other.windows
        }
        if VALIDATION in self.windows:  # it keeps nothing of any layer, so it is rehearsed with few
            lasting = {part: windows["update"][part] for part in (WEIGHTS, OPTIMIZER)}
            windows[VALIDATION] = {**self.windows[VALIDATION], **lasting}
        return Account(
            line(self.trainable, other.trainable), line(self.parameters, other.parameters), max(self.widest, other.widest),
            windows, line(self.flops, other.flops), line(self.moved, other.moved),
        )  # fmt: skip


def build(scene: Scene, depth: int, dtype: torch.dtype) -> Any:
    """The model with so many layers, in the mode that is current; its weights are whatever lies in memory, small ones are ones.

    Small ones are computed with, and a method may choose by them what trains.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(scene.model_config)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text, name, None):
            with contextlib.suppress(AttributeError):  # of some families it follows from the number of layers
                setattr(text, name, list(getattr(text, name))[:depth])
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype, trust_remote_code=scene.config.trust_remote_code)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() * parameter.itemsize <= SMALL:
                parameter.fill_(1)
    if scene.config.dropout is not None:
        set_dropout(model, scene.config.dropout)
    return model


def has_dropout(scene: Scene, method: Method | None = None) -> bool:
    """Whether the model, with a method on it where one is given, drops anything; then each document has its own beginning."""
    # An adapter stands beside every layer alike; what trains base weights may want more layers than a shallow model has.
    depth = scene.depth if method is not None and method.trains_base else scene.period
    with Hollow():
        model = build(scene, depth, torch.bfloat16)
        return drops(model if method is None else method.attach(model, scene.total_steps))


def count(scene: Scene, method: Method, depth: int) -> int:
    """Numbers that train with so many layers."""
    with Hollow():
        model = method.attach(build(scene, depth, torch.bfloat16), scene.total_steps)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
