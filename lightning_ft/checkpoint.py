"""Checkpoint folders: how they are called, which is the newest whole one, and the trained weights in them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.atomic import broken
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from lightning_ft.method import Method

NAME = re.compile(r"checkpoint-step-(\d+)")
OF_THE_RUN = frozenset({
    "inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type", "target_modules",
    "exclude_modules", "runtime_config", "tokenizer_name_or_path",
})  # fmt: skip
"""Values of an adapter's config that do not decide which function it is, or whose difference its tensors' names show."""


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps lies."""
    return run / layout.CHECKPOINTS / f"checkpoint-step-{step}"


def step_of(folder: Path) -> int:
    """The number of optimiser steps that a checkpoint folder's name says."""
    found = NAME.fullmatch(folder.name)
    if found is None:
        raise UsageError(f"Expected a checkpoint folder named checkpoint-step-<n>, got '{folder.name}'.")
    return int(found[1])


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first, whole or not."""
    found = [p for p in (run / layout.CHECKPOINTS).glob("checkpoint-step-*") if NAME.fullmatch(p.name)]
    return sorted(found, key=step_of, reverse=True)


def newest(run: Path, *, last: int | None = None, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest whole checkpoint (of step `last` or before); each broken one that is passed over is said with its reason."""
    for folder in checkpoints(run):
        if last is not None and step_of(folder) > last:
            continue
        reason = broken(folder)
        if reason is None:
            return folder
        if say:
            say(f"{folder.name} is broken ({reason}); going back to the one before it.")
    return None


def load_trained(model: nn.Module, method: Method, folder: Path) -> None:
    """Put the trained weights of a checkpoint folder back into an attached model, bit for bit.

    Raises:
        UsageError: another adapter lies beneath the one that trains than in the folder, or it is of other layers.
        ValueError: the folder's parameters are not the method's.
    """
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        _check_beneath(model, folder)
        state, mine = load_file(adapter), method.trainable_state(model)
        if state.keys() != mine.keys():
            _check_layers(model, folder)
        method.load_trainable_state(model, as_placed(state, mine))
        return
    from torch.distributed.fsdp import FSDPModule

    # Through from_pretrained rather than the file: transformers renames and fuses some families' weights on the way. By the
    # model's own class, which may be code of a repository; FSDP2 puts one of its own before it.
    own: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    stored = own.from_pretrained(str(folder), dtype=next(model.parameters()).dtype).state_dict()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    method.load_trainable_state(model, as_placed({name: stored[name] for name in trained}, trained))


def as_placed(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, which every process has, cut and spread as the tensors of the same names are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    found = dict(values)
    for name, tensor in like.items():
        if name in found and isinstance(tensor, DTensor):
            full = found[name].to(tensor.device, tensor.dtype)
            found[name] = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
    return found


def check_same_adapter(model: nn.Module, folder: Path, schedule: Collection[str] = ()) -> None:
    """Refuse to train an adapter on under other values (rank, scaling, start ...): it would be another model from step 0 on.

    Args:
        model: With the adapter that is to be trained on.
        folder: Where it was saved.
        schedule: Values that may differ.

    Raises:
        UsageError: the first value in which the adapter's config and the attached method differ.
    """
    configs: Any = getattr(model, "peft_config", None)
    path = folder / "adapter_config.json"
    if configs is None or not path.is_file():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, now in next(iter(configs.values())).to_dict().items():
        before = stored.get(name, now)
        if name in OF_THE_RUN or name in schedule or "dropout" in name:
            continue
        if _plain(name, before) != _plain(name, now):
            raise UsageError(
                f"Expected the method of adapter '{folder}' to go on training it, but {name} is {before} there and {now} here; "
                "give --method the options that the adapter was trained with."
            )


def _plain(name: str, value: Any) -> Any:
    """A value of an adapter's config as it compares: sets as lists, nothing as None, starts that keep the base as one."""
    if name == "init_lora_weights" and (isinstance(value, bool) or value in ("gaussian", "orthogonal")):
        return None
    if isinstance(value, (set, list, tuple)):
        return list(map(str, sorted(value) if isinstance(value, set) else value)) or None
    if isinstance(value, dict):
        return {str(key): _plain("", item) for key, item in value.items()} or None
    return str(getattr(value, "value", value)) if value is not None and not isinstance(value, (int, float)) else value


def _check_layers(model: nn.Module, folder: Path) -> None:
    """Refuse another adapter whose layers were named otherwise, once it is known that its tensors are others."""
    configs: Any = getattr(model, "peft_config", None)
    path = folder / "adapter_config.json"
    if configs is None or not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("target_modules")
    now = getattr(next(iter(configs.values())), "target_modules", None)
    if isinstance(before, list) and sorted(before) != sorted(now or ()):
        named = f"[{','.join(sorted(before))}]"
        raise UsageError(
            f"Expected the method of adapter '{folder}' to go on training it, got other layers than it has; type "
            f"--method.target_modules {named}."
        )


def _check_beneath(model: nn.Module, folder: Path) -> None:
    """Refuse another adapter beneath than the one that was there."""
    configs: Any = getattr(model, "peft_config", None)
    if configs is None:
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = sorted(config.parent for config in folder.glob("*/adapter_config.json"))
    names = list(configs)[1:]
    there = f"the adapter beneath it; type --method.{saved[0].name} {saved[0]}" if saved else "none beneath it"
    same = [path.name for path in saved] == names
    for path in saved if same else ():
        now = get_peft_model_state_dict(model, adapter_name=path.name)
        before = load_file(path / "adapter_model.safetensors")
        same &= now.keys() == before.keys() and all(bool((now[name].cpu() == before[name]).all()) for name in before)
    if not same:
        raise UsageError(f"Expected to go on training the adapter '{folder}' with {there}.")
