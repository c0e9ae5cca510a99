"""Frozen base weights in few bits: what a run asks for, and the note of it beside an adapter."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch
    from torch import nn

    from lightning_ft.config import TrainingConfig
    from lightning_ft.method import Method

Format = Literal["nf4", "fp4", "int8"]
ComputeType = Literal["fp32", "bf16", "fp16"]
NOTE = "quantization.json"
"""Beside an adapter that was trained on a quantised base: what it takes to load that base again."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the linear layers of a frozen base are stored."""

    quantize: Format
    """nf4 and fp4: 4 bits in blocks with a scale each (Dettmers et al. 2023, arXiv:2305.14314); int8: 8 bits by rows."""
    double_quant: bool = False
    """Whether the scales of 4-bit blocks are quantised too (section 3 there): 0.37 bits a weight less."""
    compute_dtype: ComputeType | None = None
    """What weights are turned back into for a product; None: the type of the weights that are not quantised."""

    def __post_init__(self) -> None:
        if self.quantize not in get_args(Format):
            raise UsageError(f"Expected --quantize to be one of {', '.join(get_args(Format))}; got {self.quantize!r}.")
        if not isinstance(self.double_quant, bool):
            raise UsageError(f"Expected --double_quant to be true or false; got {self.double_quant!r}.")
        if self.compute_dtype is not None and self.compute_dtype not in get_args(ComputeType):
            raise UsageError(
                f"Expected --compute_dtype to be one of {', '.join(get_args(ComputeType))}; got {self.compute_dtype!r}."
            )
        if self.quantize == "int8" and (self.double_quant or self.compute_dtype):
            option = "double_quant" if self.double_quant else "compute_dtype"
            raise UsageError(f"Expected --{option} with --quantize nf4 or fp4, got int8, which has none; leave it out.")

    def computing_in(self, dtype: torch.dtype) -> Quantization:
        """The same, with the type of products named where it was left to the weights', so that the note is complete."""
        if self.quantize == "int8" or self.compute_dtype is not None:
            return self
        names: dict[str, ComputeType] = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
        return dataclasses.replace(self, compute_dtype=names[str(dtype)])

    def write(self, folder: Path) -> None:
        """Leave the note in a model's folder."""
        (folder / NOTE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def wanted(config: TrainingConfig) -> Quantization | None:
    """What a run's options ask for.

    Raises:
        UsageError: options that do not go together.
    """
    if config.quantize is None:
        for option in ("double_quant", "compute_dtype"):
            if getattr(config, option):
                raise UsageError(f"Expected --quantize nf4 or fp4 with --{option}, which is about 4-bit weights; got none.")
        return None
    if config.from_scratch:
        raise UsageError("Expected --quantize without --from_scratch, as new weights have nothing to keep frozen; got both.")
    return Quantization(quantize=config.quantize, double_quant=config.double_quant, compute_dtype=config.compute_dtype)


def settle(config: TrainingConfig, before: Quantization | None, method: Method, *, goes_on: bool) -> Quantization | None:
    """How a run's base is stored, written back into its options, so that the record is complete.

    Args:
        config: The run's options.
        before: How it was stored when the adapter that the run goes on with was trained.
        method: What will train.
        goes_on: Whether the run goes on with an adapter.

    Raises:
        UsageError: the adapter was trained on a base of another format, the method trains the base itself, or fp16 is asked of
            a CPU.
    """
    asked = wanted(config)
    if before is not None:
        # The note names the type of products also where the run left it to the weights'.
        if asked is not None and asked.quantize == before.quantize and asked.compute_dtype is None:
            asked = dataclasses.replace(asked, compute_dtype=before.compute_dtype)
        if asked not in (None, before, dataclasses.replace(before, double_quant=False)):
            kept = dataclasses.asdict(before)
            raise UsageError(
                f"Expected to go on with the adapter '{config.model}' on the base that it was trained on "
                f"({', '.join(f'{name} {value}' for name, value in kept.items())}), got other options; leave them out."
            )
        asked = before
        config.quantize, config.double_quant, config.compute_dtype = asked.quantize, asked.double_quant, asked.compute_dtype
    elif asked is not None and asked.compute_dtype == "fp16" and not _has_gpu():
        raise UsageError("Expected --compute_dtype bf16 or fp32 on a CPU, got fp16, which it does not multiply.")
    elif asked is not None and goes_on:
        raise UsageError(
            f"Expected to go on with the adapter '{config.model}' on the base that it was trained on, of full precision, got "
            f"--quantize {asked.quantize}; leave it out."
        )
    if asked is not None and method.trains_base:
        raise UsageError(
            f"Expected --method of an adapter with --quantize {asked.quantize}, got {method.name}, which trains the base "
            "weights themselves; `lightning-ft plugins list` names the adapters."
        )
    return asked


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def full_precision(config: Any, model: str) -> Any:
    """The config of a model whose weights are stored in full precision, which alone is trained upon.

    Args:
        config: transformers'.
        model: As the user named it.

    Raises:
        UsageError: they are stored in few bits already, which would be neither counted nor kept as what they are.
    """
    stored = getattr(config, "quantization_config", None)
    if stored:
        kind = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        raise UsageError(
            f"Expected a model in full precision, got '{model}', whose weights are stored in few bits already "
            f"({getattr(kind, 'value', kind)}); name the model that it was made of, and type --quantize nf4 for few bits."
        )
    return config


def is_quantized(model: nn.Module, *, bits: int | None = None) -> bool:
    """Whether transformers loaded the model, or the base of the adapted model, in few bits (in so many, if they are named)."""
    names = {None: "is_quantized", 4: "is_loaded_in_4bit", 8: "is_loaded_in_8bit"}
    base = getattr(model, "get_base_model", lambda: model)()
    return bool(getattr(base, names[bits], False))


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Weights, also where a byte holds two of them."""
    return sum(p.numel() if (state := getattr(p, "quant_state", None)) is None else math.prod(state.shape) for p in parameters)


def loads_by_peft_alone(model: nn.Module) -> bool:
    """Whether all adapted matrices in few bits have layers of peft's own, so that it can put them there without us."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return all(
        type(module).__module__.startswith("peft.") or module.weight.is_floating_point()
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
    )


def keep_types(model: nn.Module) -> None:
    """Let adapted layers of a quantised base return the type that went in.

    Some of peft's return float32 beside bfloat16, with which attention does not multiply.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.register_forward_hook(_as_it_came)


def _as_it_came(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return output.to(args[0].dtype) if args and args[0].is_floating_point() else output  # token ids go into embeddings


def keep_scales(model: nn.Module) -> None:
    """Let 4-bit layers have their scales where they stay when the packed weights are spread over processes (FSDP2).

    bitsandbytes keeps them with the weight, and looks for them in the layer where that has become another tensor.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            module.quant_state = state
