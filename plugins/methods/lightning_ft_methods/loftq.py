"""LoftQ: start A and B at what quantisation took from the base weights."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@torch.no_grad()
def start_from_residual(model: nn.Module) -> None:
    """Set every A and B to the best approximation of rank r of what the layer lost, W - Q.

    With the singular values S of W - Q = U S V^T, the first r of them, and the layer's scale s:

        B = U sqrt(S / s),    A = sqrt(S / s) V^T,    so that Q + s B A is next to W

    This is algorithm 1 of Li et al. 2023 (arXiv:2310.08659) with one iteration (T = 1), so that Q is the plain quantised W
    and the adapter goes with everybody's copy of it. The paper's W are read from the files of the base model. DoRA's m is
    the norm of the rows of Q + s B A, so that this is what training starts at.

    Raises:
        UsageError: the base model's files do not hold the weights under the names that the model has for them.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_bnb_weight
    from transformers.pytorch_utils import Conv1D

    base: Any = model.get_base_model()  # type: ignore[operator]  # a PeftModel
    with _Stored(str(base.name_or_path), getattr(base.config, "_commit_hash", None)) as stored:
        for name, module in base.named_modules():
            layer: Any = module
            if not isinstance(module, LoraLayer):
                continue
            inner: Any = layer.get_base_layer()
            if not issubclass(type(inner), (Linear4bit, Linear8bitLt)):  # an embedding, or the head, stays as it was
                continue
            kept = dequantize_bnb_weight(inner.weight, state=getattr(inner, "state", None)).float()
            full = stored[f"{name}.weight"].to(kept.device, torch.float32)
            if issubclass(getattr(inner, "source_cls", nn.Linear), Conv1D):  # in the file the other way round, square or not
                full = full.t()
            u, s, vh = torch.linalg.svd(full - kept, full_matrices=False)
            for adapter, rank in layer.r.items():
                root = (s[:rank] / layer.scaling[adapter]).sqrt()
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                b.zero_()  # of a rank above the smaller side of W the rest adds nothing, and A as it is lets it learn
                b[:, : len(root)].copy_(u[:, :rank] * root)
                a[: len(root)].copy_(root[:, None] * vh[:rank])
                if adapter in layer.lora_magnitude_vector:
                    start = kept + layer.scaling[adapter] * b @ a
                    layer.lora_magnitude_vector[adapter].weight.copy_(start.norm(dim=1))


class _Stored:
    """The weights of a model's safetensors files by name, one at a time."""

    def __init__(self, source: str, revision: str | None) -> None:
        self.source, self.revision = source, revision
        self._files = contextlib.ExitStack()
        self._of: dict[str, Any] = {}

    def __enter__(self) -> _Stored:
        from safetensors import safe_open

        for path in _weight_files(self.source, self.revision):
            opened: Any = self._files.enter_context(safe_open(path, framework="pt"))
            self._of |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __getitem__(self, name: str) -> Tensor:
        # A file of the bare decoder lacks the prefix under which the language model has it.
        for known in (name, name.partition(".")[2]):
            if known in self._of:
                found: Tensor = self._of[known].get_tensor(known)
                return found
        raise UsageError(
            f"Expected '{self.source}' to hold the weights '{name}' for --method.init loftq; its files call them otherwise: "
            "leave --method.init out."
        )


def _weight_files(source: str, revision: str | None) -> Iterator[Path]:
    """The safetensors files of a folder or of a hub model in the local cache."""
    from transformers.utils.hub import cached_file

    def of(name: str) -> Path | None:
        try:
            found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError:  # neither a folder nor a model of the hub any more
            return None
        return Path(found) if found else None

    index = of("model.safetensors.index.json")
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index else {"model.safetensors"}
    for name in sorted(names):
        path = of(name)
        if path is None:
            raise UsageError(f"Expected '{name}' in '{source}' for --method.init loftq, found none; leave --method.init out.")
        yield path
