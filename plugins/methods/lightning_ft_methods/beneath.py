"""A frozen adapter beneath the one that trains: y = W x + s1 B1 A1 x + s2 B2 A2 x, of which only A2 and B2 train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_ft.backbone import quiet_peft
from lightning_ft.errors import UsageError
from lightning_ft.loading import BENEATH

if TYPE_CHECKING:
    from pathlib import Path


def lay_beneath(model: Any, folder: Path) -> None:
    """Load the adapter of `folder` into a peft model, frozen, and let both take part.

    Raises:
        UsageError: it is of another model.
    """
    with quiet_peft():
        try:
            model.load_adapter(str(folder), adapter_name=BENEATH, is_trainable=False)
        except (ValueError, RuntimeError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise UsageError(f"Expected --method.beneath to be an adapter of this model, got: {said}.") from error
    model.base_model.set_adapter([BENEATH, model.active_adapter])
    for name, parameter in model.named_parameters():
        if f".{BENEATH}." in f"{name}.":
            parameter.requires_grad_(False)
