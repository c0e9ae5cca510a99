"""A frozen adapter beneath the one that trains: y = W x + s1 B1 A1 x + s2 B2 A2 x, of which only A2 and B2 train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_ft.backbone import quiet_peft
from lightning_ft.errors import UsageError
from lightning_ft.loading import BENEATH
from lightning_ft.quantization import is_quantized
from lightning_ft_methods.stored import stored_lora


def lay_beneath(model: Any, name: str) -> None:
    """Load an adapter, or that of a run, into a peft model, frozen, and let both take part.

    Raises:
        UsageError: it is of another model, or was trained on one that is stored in another way.
    """
    stored = stored_lora(name, "--method.beneath")
    base, bits = model.get_base_model(), stored.where.quantization
    if _place(stored.where.base) != _place(base.name_or_path):
        raise UsageError(
            f"Expected --method.beneath to be an adapter of '{base.name_or_path}', got '{name}' of '{stored.where.base}'."
        )
    four = bits is not None and bits.quantize != "int8"
    differs = (bits is not None) != is_quantized(base) or four != is_quantized(base, bits=4)
    if four and not differs and bits is not None:
        kept = base.config.quantization_config
        differs = (bits.quantize, bits.double_quant) != (kept.bnb_4bit_quant_type, kept.bnb_4bit_use_double_quant)
    if differs:
        kind = "" if bits is None else f"{bits.quantize}{' --double_quant true' if bits.double_quant else ''}"
        trained = f"one of {kind or 'full precision'}"
        how = f"type --quantize {kind}" if kind else "leave --quantize out"
        if four and bits is not None and not bits.double_quant:
            how += " without --double_quant"
        raise UsageError(f"Expected --method.beneath on the base that it was trained on, {trained}: '{name}'; {how}.")
    with quiet_peft():
        try:
            model.load_adapter(str(stored.folder), adapter_name=BENEATH, is_trainable=False)
        except (ValueError, RuntimeError, OSError) as error:
            raise UsageError(f"Expected --method.beneath to be an adapter of this model; '{name}' has other shapes.") from error
    model.base_model.set_adapter([BENEATH, model.active_adapter])
    for name, parameter in model.named_parameters():
        if f".{BENEATH}." in f"{name}.":
            parameter.requires_grad_(False)


def _place(name: str) -> str:
    """A folder by its whole path, a model of the hub by its id."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
