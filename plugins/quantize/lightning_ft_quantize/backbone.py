"""A base in 4 or 8 bits by bitsandbytes, through transformers' own loader."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.backbone import load_causal_lm
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig

    from lightning_ft.backbone import Backbone, BackboneSpec
    from lightning_ft.quantization import Quantization

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_quantized(spec: BackboneSpec, stored: Quantization) -> Backbone:
    """The model of `spec` with its linear layers (all but the output head) quantised, everything else as `spec.dtype` says.

    Raises:
        UsageError: bitsandbytes is missing or too old, or the model comes quantised already.
    """
    device = spec.device or torch.device("cpu")
    if stored.compute_dtype == "fp16" and device.type == "cpu":
        # A new run is refused where it asks for this, so it is an adapter from a GPU, which nobody can give another note.
        log.warning("the adapter was trained with products in fp16, which a CPU does not multiply; computing in fp32")
        stored = replace(stored, compute_dtype="fp32")
    try:
        import bitsandbytes  # noqa: F401 - to say that it is missing before anything is read
    except ImportError as error:
        raise UsageError(
            f"Expected bitsandbytes for --quantize {stored.quantize}, found none that loads ({error}); type pip install "
            "bitsandbytes."
        ) from error
    dtype = spec.dtype or torch.get_default_dtype()
    where = {"": device.index if device.index is not None else device.type}
    backbone = load_causal_lm(spec, quantization_config=describe(stored, dtype), device_map=where)
    if stored.quantize == "int8":
        from lightning_ft_quantize.forgetful import forget_inputs

        forget_inputs(backbone.model)
    else:
        from lightning_ft_quantize.packed import register_packed

        keep_differentiable(backbone.model)
        register_packed()
    release_file(backbone.model)
    return backbone


def release_file(model: nn.Module) -> None:
    """Copy what still lies in the mapped file of the weights, so that nothing holds the file any more.

    On a CPU tensors that were not quantised (embeddings, norms, the output head) are views of it, and while one of them
    lives, the pages of all others stay with the process: the 16-bit weights that were quantised, too.
    """
    for parameter in model.parameters():
        if not parameter.untyped_storage().resizable():  # torch owns no memory that it cannot resize
            parameter.data = parameter.data.clone()


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights for inference.

    On CPUs with avx512_bf16 bitsandbytes does that at the first product in evaluation mode, for good, and its product of
    repacked weights passes no gradient on: training would go on without most of its gradient, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # no tensor


def describe(stored: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The same in transformers' words; `dtype` is that of the weights that are not quantised."""
    from transformers import BitsAndBytesConfig

    if stored.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]  # of transformers
    options: dict[str, Any] = {
        "bnb_4bit_quant_type": stored.quantize,
        "bnb_4bit_use_double_quant": stored.double_quant,
        "bnb_4bit_compute_dtype": dtype if stored.compute_dtype is None else DTYPES[stored.compute_dtype],
    }
    return BitsAndBytesConfig(load_in_4bit=True, **options)  # type: ignore[no-untyped-call]  # of transformers
