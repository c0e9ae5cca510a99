"""LoHa and LoKr on 4-bit layers, whose weights are kept as (out_features * in_features / 2, 1) bytes.

peft has these two for linear layers of any kind, but takes the shape of the stored weight for that of the matrix. Only what
it reads of shapes is different here: names, start, change of the weights and saved files are peft's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.loha.layer import Linear as LoHaLinear
from peft.tuners.loha.model import LoHaModel
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.lokr.model import LoKrModel

if TYPE_CHECKING:
    from peft.tuners.lycoris_utils import LycorisLayer
    from torch import Tensor


def register_packed() -> None:
    """Let peft put these layers around 4-bit ones, wherever it attaches or loads an adapter; calling it again is harmless.

    4-bit layers are linear layers too, and peft takes the first kind that fits.
    """
    LoHaModel.layers_mapping = {Linear4bit: LoHaLinear4bit, **LoHaModel.layers_mapping}
    LoKrModel.layers_mapping = {Linear4bit: LoKrLinear4bit, **LoKrModel.layers_mapping}


def _shape(layer: LycorisLayer) -> tuple[int, int]:
    """(out_features, in_features): of the matrix that the layer changes."""
    base: Any = layer.get_base_layer()
    return base.out_features, base.in_features


class _Unpacked:
    """A layer as `get_delta_weight` is to see it: its parameters, around a weight of the matrix' shape."""

    def __init__(self, layer: LycorisLayer) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def get_base_layer(self) -> SimpleNamespace:
        """Nothing but the shape is read of it."""
        return SimpleNamespace(weight=SimpleNamespace(shape=_shape(self._layer)))


class LoHaLinear4bit(LoHaLinear):
    """peft's LoHa layer around a 4-bit one."""

    def create_adapter_parameters(self, adapter_name: str, r: int, shape: tuple[int, ...]) -> None:  # type: ignore[override]  # as peft's
        """As around a weight of shape (out_features, in_features); `shape` is that of the bytes."""
        super().create_adapter_parameters(adapter_name, r, _shape(self))

    def get_delta_weight(self, adapter_name: str, **options: Any) -> Tensor:
        """(out_features, in_features): the change."""
        return LoHaLinear.get_delta_weight(cast("Any", _Unpacked(self)), adapter_name, **options)


class LoKrLinear4bit(LoKrLinear):
    """peft's LoKr layer around a 4-bit one."""

    def get_delta_weight(self, adapter_name: str, **options: Any) -> Tensor:
        """(out_features, in_features): the change."""
        return LoKrLinear.get_delta_weight(cast("Any", _Unpacked(self)), adapter_name, **options)
