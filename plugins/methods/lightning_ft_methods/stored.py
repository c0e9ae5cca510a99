"""LoRA adapters on disk: which of them are matrices beside a model's layers and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from lightning_ft.backbone import read_json
from lightning_ft.errors import UsageError
from lightning_ft.loading import Location, locate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class StoredLoRA:
    """An adapter on disk."""

    folder: Path
    where: Location
    config: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Its tensors by peft's names.

        Raises:
            UsageError: the file cannot be read, or holds other tensors than A and B.
        """
        from safetensors.torch import load_file

        try:
            found = load_file(self.folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"Expected a whole adapter in '{self.folder}', got: {' '.join(str(error).split())[:150]}."
            ) from error
        odd = next((name for name in found if not name.endswith((A, B))), None)
        if odd is not None:
            raise UsageError(f"Expected A and B of linear layers alone in '{self.folder}', got '{odd}'; merge it instead.")
        return found

    def change(self, module: str, weights: Mapping[str, Tensor]) -> Tensor:
        """(out_features, in_features) float32: what it adds to a layer, s B A."""
        a, b = weights[module + A].float(), weights[module + B].float()
        rank = a.shape[0]
        scale = self.config["lora_alpha"] / (rank**0.5 if self.config.get("use_rslora") else rank)
        return float(scale) * (b @ a)


def stored_lora(name: str, flag: str) -> StoredLoRA:
    """The adapter that a folder or a run folder stands for; `flag` is what the user typed it after.

    Raises:
        UsageError: it is a whole model, or no LoRA adapter of matrices alone.
    """
    where = locate(name)
    if where.adapter is None:
        raise UsageError(f"Expected {flag} to be an adapter or the run folder of one; got '{name}', a whole model.")
    config = read_json(where.adapter / "adapter_config.json")
    got = None
    if config.get("peft_type") != "LORA":
        got = f"one of type {config.get('peft_type')}"
    elif config.get("modules_to_save") or config.get("trainable_token_indices"):
        got = "one that replaces whole modules or tokens"
    elif config.get("bias", "none") != "none":
        got = "one with trained biases"
    elif config.get("use_dora") or config.get("init_lora_weights") in ("pissa", "olora"):
        got = "one of DoRA" if config.get("use_dora") else f"one of init={config['init_lora_weights']}, which changes the base"
    elif config.get("rank_pattern") or config.get("alpha_pattern"):
        got = "one with ranks by layer"
    elif any(where.adapter.glob("*/adapter_config.json")):
        got = "one upon another"
    if got is not None:
        raise UsageError(
            f"Expected {flag} to be a LoRA adapter of two matrices a layer, got {got}: '{name}'; merge it instead."
        )
    return StoredLoRA(where.adapter, where, config)
