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
READ = frozenset({
    "r", "lora_alpha", "use_rslora", "peft_type", "init_lora_weights", "lora_dropout", "target_modules", "task_type",
    "base_model_name_or_path", "revision", "inference_mode", "fan_in_fan_out", "auto_mapping", "peft_version",
    "layers_to_transform", "layers_pattern", "exclude_modules", "ensure_weight_tying", "loftq_config",
})  # fmt: skip
"""Keys of an adapter's config that are taken into account here, or that only say where A and B are."""


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
        UsageError: there is none, or it is a whole model, or no LoRA adapter of two matrices a layer and nothing else.
    """
    from peft import LoraConfig

    try:
        where = locate(name)
    except UsageError as error:
        raise UsageError(str(error).replace("--model", flag)) from error
    if where.adapter is None:
        raise UsageError(f"Expected {flag} to be an adapter or the run folder of one; got '{name}', a whole model.")
    config = read_json(where.adapter / "adapter_config.json")
    usual: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]  # of peft
    got = None
    odd = sorted(key for key, value in config.items() if key not in READ and value and value != usual.get(key))
    numbers = all(isinstance(config.get(key), (int, float)) and config[key] > 0 for key in ("r", "lora_alpha"))
    if config.get("peft_type") != "LORA":
        got = f"one of type {config.get('peft_type')}"
    elif config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        got = f"one of init={config['init_lora_weights']}, which changes the base"
    elif odd:
        got = f"one with {odd[0]}"
    elif not numbers:
        got = "one whose config has no rank or alpha above 0"
    elif any(where.adapter.glob("*/adapter_config.json")):
        got = "one upon another"
    if got is not None:
        raise UsageError(f"Expected {flag} to be a LoRA adapter of two matrices a layer and nothing else, got {got}: '{name}'.")
    return StoredLoRA(where.adapter, where, config)
