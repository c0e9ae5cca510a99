"""bitsandbytes' optimisers by name and with documented options; each class makes bitsandbytes' own object.

The classes are here for `--help` and for the check of options: importing bitsandbytes takes a second, which only those wait
for who use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAST_8BIT = 4096
"""Weights of a parameter below which its state stays in 32 bits."""


class _Named(torch.optim.Optimizer):
    """What a subclass names, documents and declares the options of; calling it makes bitsandbytes' own object."""

    theirs: ClassVar[str]
    """The class in bitsandbytes."""
    unpaged: ClassVar[str | None] = None
    """The optimiser to take instead where there is no GPU to move pages from; None: there are no pages."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Bitsandbytes' object.

        Raises:
            ValueError: bitsandbytes cannot be imported, or there is no GPU for its pages, with which it would go on without.
        """
        if cls.unpaged is not None and not torch.cuda.is_available():
            raise ValueError(f"expected a CUDA GPU for {cls.__name__}, found none; type --optimizer {cls.unpaged}")
        try:
            optim = importlib.import_module("bitsandbytes.optim")
        except ImportError as error:
            raise ValueError(
                f"expected bitsandbytes, found none that loads ({error}); type pip install bitsandbytes"
            ) from error
        return getattr(optim, cls.theirs)(*args, **kwargs)


class AdamW8bit(_Named):
    """AdamW with its two moments in 8 bits, blocks of 256 with a scale each (Dettmers et al. 2021, arXiv:2110.02861).

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled.
        min_8bit_size: Parameters of fewer numbers keep their moments in 32 bits.

    Raises:
        ValueError: a value is out of its range.
    """

    theirs: ClassVar[str] = "AdamW8bit"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, min_8bit_size: int = LEAST_8BIT,
    ) -> None:  # fmt: skip
        raise AssertionError("`__new__` returns an object of another class")


class Lion8bit(_Named):
    """Lion (Chen et al. 2023, arXiv:2302.06675) with its momentum in 8 bits.

    Args:
        params: Parameter groups.
        lr: Learning rate; a third to a tenth of AdamW's.
        betas: Weight of the momentum in the update, and its decay.
        weight_decay: Decoupled.
        min_8bit_size: Parameters of fewer numbers keep their momentum in 32 bits.

    Raises:
        ValueError: a value is out of its range.
    """

    theirs: ClassVar[str] = "Lion8bit"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
        min_8bit_size: int = LEAST_8BIT,
    ) -> None:  # fmt: skip
        raise AssertionError("`__new__` returns an object of another class")


class PagedAdamW(_Named):
    """AdamW whose moments lie in memory that the GPU's driver moves to the host where the GPU is full (QLoRA, section 3).

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled.

    Raises:
        ValueError: there is no CUDA GPU, or a value is out of its range.
    """

    theirs: ClassVar[str] = "PagedAdamW32bit"
    unpaged: ClassVar[str | None] = "AdamW"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        raise AssertionError("`__new__` returns an object of another class")


class PagedAdamW8bit(_Named):
    """`AdamW8bit` whose moments lie in memory that the GPU's driver moves to the host where the GPU is full.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled.
        min_8bit_size: Parameters of fewer numbers keep their moments in 32 bits.

    Raises:
        ValueError: there is no CUDA GPU, or a value is out of its range.
    """

    theirs: ClassVar[str] = "PagedAdamW8bit"
    unpaged: ClassVar[str | None] = "AdamW8bit"

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, min_8bit_size: int = LEAST_8BIT,
    ) -> None:  # fmt: skip
        raise AssertionError("`__new__` returns an object of another class")
