"""Commands begin sooner without what no command needs: parts of libraries that other libraries load as they are imported.

Each entry of `AROUND` names a module and what is done while it runs for the first time. It is for the process of a command
alone; whoever imports lightning_ft gets every library as it is.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, a tenth of the time of imports, which leave next to none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """`uncollected`, and what is here then is never looked through: modules stay to the end."""
    with uncollected():
        yield
        gc.freeze()


@contextlib.contextmanager
def instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """With another module in place of one that was not imported yet, or as if that were not installed (None)."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]  # None is how Python says that there is no such module
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def compiled_when_called() -> Iterator[None]:
    """`torch.compile` waits for the first call of what it was given: only to be called, it loads the whole compiler."""
    import torch

    now = torch.compile

    def later(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = functools.cache(lambda: now(function, **options))
        return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = later  # type: ignore[assignment]  # for functions alone, as they are decorated
    try:
        yield
    finally:
        torch.compile = now


def _old_signals() -> ModuleType:
    """`scipy.signal` with all that torchmetrics looks for in it: whether a function still has a name of before 2022."""
    module = ModuleType("scipy.signal")
    module.__dict__["hamming"] = None
    return module


AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "lightning": kept,
    "peft": kept,
    "torchmetrics": lambda: instead("scipy.signal", _old_signals()),
    # Imported by what counts the words of ROUGE; classifiers are among all that it imports itself.
    "nltk": lambda: instead("sklearn", None),
    # Of four functions, for 8-bit optimisers and for processors that it has no kernels for.
    "bitsandbytes.backends.default.ops": compiled_when_called,
}
"""Modules, and what is done around their first run."""


class Lean(MetaPathFinder):
    """Finds the modules of `AROUND` where they are found anyway, and has them run that way."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for all other modules, which the next finder finds."""
        spec = PathFinder.find_spec(name, path, target) if name in AROUND else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with AROUND[name]():
                    run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this module alone
        return spec


def begin() -> None:
    """From here on this process, a command's, imports that way."""
    if not any(isinstance(finder, Lean) for finder in sys.meta_path):
        sys.meta_path.insert(0, Lean())
