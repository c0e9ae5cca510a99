"""Runs code on tensors that hold no data, and counts every allocation: when it comes, when it goes, what it is for.

Tensors made within the mode are ordinary ones on the CPU, so that code takes every path that it takes in a run. Their memory
is reserved but never touched: operators are asked for the shape of their result only. Autograd keeps and drops them as it does
in a run, so what is alive at a moment is what would be alive.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS = PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
"""What memory is for. Activations are all that is none of the others, temporary results included."""
SMALL = 1 << 18
"""Bytes up to which a result is computed where all that it is computed from is known: positions, masks, counters."""
MOST = 100_000
"""Operators after which a rehearsal is given up: some methods write matrices of the model's width number by number."""
READ = 1 << 12
"""Bytes up to which a hollow tensor is full of ones, as its numbers may be read past the operators (`tolist`)."""
_aten = torch.ops.aten


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any) -> Tensor:
    """What the products of a mixture of experts return: torch's own rule takes bfloat16 only, which the CPU does not."""
    if a.ndim == b.ndim == 2:
        return a.new_empty(0 if offs is None else len(offs), a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[-3:-1], b.shape[-1]) if b.ndim == 3 else a.new_empty(a.shape[1], b.shape[1])


_ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    _aten._local_scalar_dense.default: lambda t: 1.0 if t.is_floating_point() else t.dtype == torch.bool or 1,
    _aten.equal.default: lambda t: True,
    _aten.allclose.default: lambda t: True,
    _aten._linalg_check_errors.default: lambda t: None,
    _aten.nonzero.default: lambda t: torch.ones(t.shape, dtype=torch.bool).nonzero(),
}
"""What code is told that asks for values."""
_BY_VALUE = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
"""Marks of operators whose result has a shape, or is a number, that only values decide."""
_SHAPES: dict[Any, Callable[..., Tensor]] = {
    _aten._grouped_mm.default: _grouped,
}
"""Results of operators that have no rule for tensors without data."""
_known: dict[Any, Any] = {}
"""What operators returned for arguments of these shapes: the same layers come again and again."""


class TooLongError(RuntimeError):
    """A rehearsal would take too long."""


class Hollow(TorchDispatchMode):
    """The mode; use it in a `with` block.

    Code that asks a hollow tensor for a value gets 1 and, where it asks which elements fulfil a condition, all of them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.alive: Counter[str] = Counter()
        """Bytes by part, now."""
        self.peaks: dict[str, dict[str, int]] = {}
        """Bytes by part at the worst moment of each window."""
        self.flops = 0
        """Of matrix products and attention, two for a multiplication with its addition."""
        self.moved = 0
        """Bytes that all operators together read and wrote."""
        self._calls = 0
        self._part = ACTIVATIONS
        self._open: set[str] = set()
        self._storages: dict[int, tuple[str, int]] = {}
        self._unknown: set[int] = set()

    # ---- accounts -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the block what is new belongs to this part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def open(self, window: str) -> None:
        """From now on note the worst moment under this name."""
        self._open.add(window)
        self.peaks.setdefault(window, {})
        self._note()

    def close(self, window: str) -> None:
        """End a window; nothing where it is not open."""
        self._open.discard(window)

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Note the worst moment of a block."""
        self.open(name)
        try:
            yield
        finally:
            self.close(name)

    def assign(self, tensor: Tensor, part: str, size: int | None = None) -> None:
        """From now on a tensor's storage belongs to this part, and counts as so many bytes where they are given."""
        key = tensor.untyped_storage()._cdata
        if key not in self._storages:
            self._add(tensor, part)
        before, counted = self._storages[key]
        size = counted if size is None else size
        self.alive[before] -= counted
        self.alive[part] += size
        self._storages[key] = (part, size)

    def _add(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._storages[key] = (part, size)
        self.alive[part] += size
        weakref.finalize(storage, self._gone, key).atexit = False
        self._note()

    def _gone(self, key: int) -> None:
        part, size = self._storages.pop(key)
        self.alive[part] -= size
        self._unknown.discard(key)

    def _note(self) -> None:
        total = sum(self.alive.values())
        for window in self._open:
            if total > sum(self.peaks[window].values()):
                self.peaks[window] = dict(self.alive)

    # ---- operators ----------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would wrap every call, against a compiler that is not used here, and take a third longer."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The result of an operator, without its numbers."""
        self._calls += 1
        if self._calls > MOST:
            raise TooLongError(f"it takes more than {MOST:,} operations to build")
        kwargs = {} if kwargs is None else dict(kwargs)
        if _keeps_storage(func):
            return func(*args, **kwargs)
        given = _tensors((*args, *kwargs.values()))
        unknown = any(t.untyped_storage()._cdata in self._unknown for t in given)
        if unknown and func in _ANSWERS:
            return _ANSWERS[func](args[0])
        mutable = func._schema.is_mutable
        shapes = None if mutable or _asks_values(func) else self._shapes(func, args, kwargs)
        if shapes is None and not mutable and unknown:
            raise NotImplementedError(f"{func} asks for values, of which there are none")
        if not unknown and sum(map(_bytes, given)) + sum(s.bytes for s in _Shape.of(shapes)) <= SMALL:
            out = func(*args, **kwargs)
            for tensor in _tensors((out,)):
                if tensor.untyped_storage()._cdata not in self._storages:
                    self._add(tensor, self._part)
            return out
        out = self._written(func, args, kwargs) if mutable else self._made(shapes)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        self.moved += sum(map(_bytes, given)) + sum(map(_bytes, _tensors((out,))))
        return out

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator returns, with shapes in place of tensors; known from before where it was met before."""
        key = (func, torch.get_default_dtype(), _key(args), _key(tuple(kwargs.items())))
        if key not in _known:
            _known[key] = _Shape.in_place_of(_on_meta(func, args, kwargs))
        return _known[key]

    def _made(self, shapes: Any) -> Any:
        """Tensors in place of shapes."""
        if isinstance(shapes, _Shape):
            made = torch.empty_strided(shapes.size, shapes.stride, dtype=shapes.dtype)
            if shapes.bytes <= READ:
                made.fill_(1)
            self._add(made, self._part)
            self._unknown.add(made.untyped_storage()._cdata)
            return made
        return type(shapes)(map(self._made, shapes)) if isinstance(shapes, (list, tuple)) else shapes

    def _written(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator returns that writes into its arguments: those."""
        named = dict(zip(_names(func), args, strict=False)) | kwargs
        into = [named[name] for name in _written_names(func) if name in named]
        self._unknown.update(t.untyped_storage()._cdata for t in _tensors(into))
        if not func._schema.returns:
            return None
        return into[0] if len(into) == 1 else tuple(into)


class _Shape(NamedTuple):
    """A tensor without its storage."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.size) * self.dtype.itemsize

    @classmethod
    def in_place_of(cls, value: Any) -> Any:
        """The same structure with shapes for tensors."""
        if isinstance(value, Tensor):
            return cls(tuple(value.shape), value.stride(), value.dtype)
        return type(value)(map(cls.in_place_of, value)) if isinstance(value, (list, tuple)) else value

    @classmethod
    def of(cls, value: Any) -> list[_Shape]:
        """The shapes in a structure."""
        if isinstance(value, cls):
            return [value]
        return [shape for item in value for shape in cls.of(item)] if isinstance(value, (list, tuple)) else []


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, which are lists at most."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _key(value: Any) -> Any:
    """What of an argument decides the shape of the result."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(_key, value)) if isinstance(value, (list, tuple)) else (type(value), value)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@functools.cache
def _names(func: Any) -> tuple[str, ...]:
    """Of an operator's arguments."""
    return tuple(a.name for a in func._schema.arguments)


@functools.cache
def _written_names(func: Any) -> tuple[str, ...]:
    """Of the arguments that an operator writes into."""
    return tuple(a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


@functools.cache
def _asks_values(func: Any) -> bool:
    """Whether the values of arguments decide what an operator returns, or its shape."""
    return func is not _aten.index.Tensor and not _BY_VALUE.isdisjoint(func.tags)


@functools.cache
def _keeps_storage(func: Any) -> bool:
    """Whether an operator is a view, or changes what a tensor is (`transpose_`) rather than what is in it."""
    if func.is_view or torch.Tag.inplace_view in func.tags:
        return True
    return func._overloadpacket in (_aten._unsafe_view, _aten.set_, _aten.lift_fresh)


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """The operator's result as tensors of the device `meta`."""

    def twin(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(value, (list, tuple)):
            return type(value)(map(twin, value))
        return torch.device("meta") if isinstance(value, torch.device) else value

    if "device" in (a.name for a in func._schema.arguments if a.kwarg_only) and not _tensors((*args, *kwargs.values())):
        kwargs = {**kwargs, "device": torch.device("meta")}
    if func is _aten.index.Tensor:
        args = (args[0], [part for index in args[1] for part in _as_numbers(index)])
    shape_of = _SHAPES.get(func, func)
    return shape_of(*map(twin, args), **{name: twin(value) for name, value in kwargs.items()})


def _as_numbers(index: Tensor | None) -> list[Tensor | None]:
    """What an index of truth values stands for where all of them are true."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.empty(index.numel(), dtype=torch.int64)] * index.ndim
