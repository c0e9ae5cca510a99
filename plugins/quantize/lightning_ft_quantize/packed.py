"""LoHa and LoKr on 4-bit layers, whose weights are kept as (out_features * in_features / 2, 1) bytes.

peft has these two for linear layers of any kind, but takes the shape of the stored weight for that of the matrix. Only what
it reads of shapes is different here: names, start, change of the weights and saved files are peft's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from peft.tuners.loha.layer import Linear as LoHaLinear
from peft.tuners.loha.model import LoHaModel
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.lokr.model import LoKrModel

if TYPE_CHECKING:
    from torch import Tensor


def register_packed() -> None:
    """Let peft put these layers before 4-bit ones, wherever it attaches or loads an adapter; calling it again is harmless.

    4-bit layers are linear layers too, and peft takes the first kind that fits.
    """
    from bitsandbytes.nn import Linear4bit

    LoHaModel.layers_mapping = {Linear4bit: LoHaLinear4bit, **LoHaModel.layers_mapping}
    LoKrModel.layers_mapping = {Linear4bit: LoKrLinear4bit, **LoKrModel.layers_mapping}


class _Unpacked:
    """A layer as `get_delta_weight` is to see it: its parameters, before a weight of the matrix' shape."""

    def __init__(self, layer: LoHaLinear | LoKrLinear) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def get_base_layer(self) -> SimpleNamespace:
        """Nothing but the shape is read of it."""
        return SimpleNamespace(weight=SimpleNamespace(shape=(self._layer.out_features, self._layer.in_features)))


class LoHaLinear4bit(LoHaLinear):
    """peft's LoHa layer before a 4-bit one."""

    def create_adapter_parameters(self, adapter_name: str, r: int, shape: tuple[int, ...]) -> None:
        """As before a weight of shape (out_features, in_features)."""
        super().create_adapter_parameters(adapter_name, r, (self.out_features, self.in_features))

    def get_delta_weight(self, adapter_name: str, *, apply_rank_dropout: bool = False) -> Tensor:
        """(out_features, in_features): the change."""
        return LoHaLinear.get_delta_weight(cast("Any", _Unpacked(self)), adapter_name, apply_rank_dropout=apply_rank_dropout)


class LoKrLinear4bit(LoKrLinear):
    """peft's LoKr layer before a 4-bit one."""

    def get_delta_weight(self, adapter_name: str, *, apply_rank_dropout: bool = False) -> Tensor:
        """(out_features, in_features): the change."""
        return LoKrLinear.get_delta_weight(cast("Any", _Unpacked(self)), adapter_name, apply_rank_dropout=apply_rank_dropout)
