"""What a method does and keeps of its contract, as a row of a table: found out on tiny models, clause by clause."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_ft.backbone import BackboneSpec
from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.quantization import Format, Quantization
from lightning_ft.registry import registry
from lightning_ft.testing.methods import METHOD_CLAUSES, Trained, attach, trained
from lightning_ft.testing.models import FAMILIES, Family, tiny_backbone_folder

if TYPE_CHECKING:
    from torch import nn

    from lightning_ft.method import Method

HEADS = (
    "method", "trained numbers", "Llama", "GPT-2", "starts as the base", "packing", "recomputed activations", "merges",
    "frozen base", "goes on from an adapter", "on nf4", "on int8",
)  # fmt: skip


def row(name: str) -> tuple[str, ...]:
    """A cell for each of `HEADS`.

    Under a family stands "yes" where the method keeps every clause there, "no" where it refuses it, and else the message of the
    clause that it breaks. What a method declares (packing, recomputing, its start) is believed, as clauses hold it to that.
    """
    method = registry().methods[name].cls()
    families = [kept(method, family) for family in FAMILIES]
    model = next(run.model for family in FAMILIES if isinstance(run := trained(method, family), Trained))
    facts = (
        method.starts_as_base, method.can_pack, method.can_checkpoint, merges(method), not method.trains_base,
        method.can_continue, *(on_quantized(method, stored) for stored in ("nf4", "int8")),
    )  # fmt: skip
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (f"`{name}`", f"{numbers:,}", *families, *("yes" if fact else "no" for fact in facts))


def kept(method: Method, family: Family) -> str:
    """Whether it keeps its contract on models of a family."""
    run = trained(method, family)
    if isinstance(run, UsageError):
        return "no"
    try:
        for clause in METHOD_CLAUSES.values():
            clause(run)
    except AssertionError as error:
        return str(error)
    return "yes"


def merges(method: Method) -> bool:
    """Whether a merged model of some family exists."""
    for family in FAMILIES:
        try:
            return method.merge(attach(method, family)) is not None
        except NotMergeableError:
            return False
        except UsageError:  # of `attach`
            continue
    return False


def on_quantized(method: Method, stored: Format) -> bool:
    """Whether it can be attached to a base whose weights are stored in that format."""
    if method.trains_base:
        return False
    try:
        attach(method, "llama", base=functools.partial(_quantized, stored))
    except UsageError:
        return False
    return True


def _quantized(stored: Format, family: Family) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        tiny_backbone_folder(Path(folder), family)
        spec = BackboneSpec(model=folder, dtype=torch.float32, quantization=Quantization(quantize=stored))
        model: nn.Module = registry().manager.hook.load_backbone(spec=spec).model
    return model
