"""The kernels of `native/`, compiled once by the machine's C compiler: bfloat16 on a CPU.

Matrix units have made products so fast that eager PyTorch's passes over memory between them take more than half of a step. The
functions here are for contiguous tensors on a CPU, in bfloat16 where nothing else is said. What takes matrix units itself is in
`matrix_units`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lightning_ft.cache import user_cache

SWITCH = "LIGHTNING_FT_NATIVE"
"""Set to `off`, this variable keeps everything here unused."""
_SOURCES = Path(__file__).with_name("native")
_WIDE = ("-mprefer-vector-width=512",) if platform.machine().lower() in ("x86_64", "amd64") else ()
_FLAGS = ("-O3", "-march=native", *_WIDE, "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared")
_SECONDS = 120
"""Most that the compiler may take."""
_SIGNATURES = {
    "gated": "pppn", "gated_back": "pppppn", "rotated": "ppppnnnnnnnni", "likelihood": "ppppnnfi", "norm": "ppppnnf",
    "norm_back": "ppppppnn", "causal": "pnnnn", "causal_back": "ppnnnn",
}  # fmt: skip
"""Of each C function: pointers, 64-bit numbers, floats, ints."""
_ON_MATRIX_UNITS = {
    "product": "pnpnpnnnnipnpnpnpn", "product_room": "nnnnn", "attend": "pnnpnnpnnpnnnnnfpppn", "attend_room": "nnn",
    "attend_back": "pnnpnnpnnpnnnnnfpppppppn", "attend_back_room": "nnn",
}  # fmt: skip
"""The same of those that are only there where the processor has matrix units; `_room` is bytes for each thread."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where there is no compiler, it fails, or what it made is wrong."""
    if os.environ.get(SWITCH) == "off":
        return None
    for compiler in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if shutil.which(compiler) is None:
            continue
        # No home folder is a RuntimeError, no user ids (Windows) an AttributeError.
        with contextlib.suppress(OSError, AttributeError, RuntimeError, subprocess.SubprocessError):
            made = _built(compiler)
            if _agrees(made):
                return made
    return None


def _built(compiler: str) -> ctypes.CDLL:
    """The library, from the cache or made now.

    Raises:
        OSError, SubprocessError: it cannot be made or loaded.
    """
    files = sorted(_SOURCES.glob("*.[ch]"))
    about = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    # Made for this very processor: a home folder may be that of several machines.
    key = hashlib.sha256(
        b"\0".join([*(file.read_bytes() for file in files), about, " ".join(_FLAGS).encode(), _processor().encode()])
    ).hexdigest()[:32]
    folder = user_cache() / "native"
    path = folder / f"{key}.so"
    if path.is_file() and path.stat().st_uid == os.getuid():
        with contextlib.suppress(OSError):
            return _loaded(path)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = folder if os.access(folder, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place) as temporary:
        made = Path(temporary) / path.name
        command = [compiler, *_FLAGS, *(str(file) for file in files if file.suffix == ".c"), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
        if place is None:
            return _loaded(made)
        made.replace(path)
    return _loaded(path)


def _processor() -> str:
    """What the compiler's `native` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    return platform.processor() or platform.machine()


def _loaded(path: Path) -> ctypes.CDLL:
    """The library, with the types of its functions."""
    # Its OpenMP is torch's: the linker takes the one that the process has under that name.
    found = ctypes.CDLL(str(path))
    for name, kinds in (_SIGNATURES | (_ON_MATRIX_UNITS if has_matrix_units(found) else {})).items():
        function = getattr(found, name)
        function.argtypes = [_TYPES[kind] for kind in kinds]
        function.restype = ctypes.c_int64 if name.endswith("_room") else None
    return found


def has_matrix_units(made: ctypes.CDLL) -> bool:
    """Whether the processor has them, the compiler knows them and the operating system lets this process use them."""
    return bool(made.matrix_units())


def _agrees(made: ctypes.CDLL) -> bool:
    """Whether it computes what PyTorch does, on numbers that a wrong rounding or a wrong exponential would show."""
    x = torch.linspace(-12, 12, 1001).bfloat16()
    y, out = x.flip(0).contiguous(), torch.empty_like(x)
    made.gated(x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel())
    wide = x.float()
    # A difference in the last place of float32 may round to the other neighbour.
    return torch.allclose(out.float(), wide / (1 + (-wide).exp()) * y.float(), rtol=2**-8 * 1.01)


def _lib() -> ctypes.CDLL:
    found = library()
    assert found is not None, "asked for by `kernels.on_cpu`"
    return found


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; both of one shape."""
    out = torch.empty_like(gate)
    _lib().gated(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel())
    return out


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; all three of one shape."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    _lib().gated_back(
        grad.data_ptr(), gate.data_ptr(), up.data_ptr(), d_gate.data_ptr(), d_up.data_ptr(), gate.numel()
    )  # fmt: skip
    return d_gate, d_up


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """As `triton_kernels.rotated`: x (B, H, T, D), its last dimension contiguous; cos and sin (B or 1, T, D)."""
    rows, heads, length, width = x.shape
    out = x.new_empty(rows, length, heads, width)
    table = cos.stride(0) if cos.shape[0] > 1 else 0
    _lib().rotated(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), rows, heads, length, width, *x.stride()[:3], table, back
    )
    return out.transpose(1, 2)


def likelihood(logits: Tensor, targets: Tensor, hits: Tensor | None, smoothing: float, *, gradient: bool) -> Tensor:
    """As `triton_kernels.likelihood`: (N, V) and (N,) int64 to (N,) float32.

    Raises:
        IndexError: a target is no number of the vocabulary; C would write beside the logits.
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise IndexError(f"Expected targets from 0 to {logits.shape[1] - 1}, got {int(targets.min())} to {int(targets.max())}.")
    nll = torch.empty(len(targets), dtype=torch.float32)
    _lib().likelihood(
        logits.data_ptr(), targets.contiguous().data_ptr(), nll.data_ptr(), None if hits is None else hits.data_ptr(),
        *logits.shape, smoothing, gradient,
    )  # fmt: skip
    return nll


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`w x r` with r = (mean(x^2) + eps)^-1/2 over the last dimension, rounded before the weight; and r, float32 (..., 1)."""
    out, scale = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
    _lib().norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), scale.data_ptr(), scale.numel(), x.shape[-1], eps
    )  # fmt: skip
    return out, scale


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, *, trains: bool
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x and, where it trains, of the weight in float32 (D,)."""
    d_x, d_weight = torch.empty_like(x), torch.zeros(x.shape[-1]) if trains else None
    _lib().norm_back(
        grad.data_ptr(), x.data_ptr(), weight.data_ptr(), scale.data_ptr(), d_x.data_ptr(),
        None if d_weight is None else d_weight.data_ptr(), scale.numel(), x.shape[-1],
    )  # fmt: skip
    return d_x, d_weight


def causal(scores: Tensor, block: int, start: int) -> Tensor:
    """The softmax of what queries see, in place; keys behind a query get 0.

    Args:
        scores: (K, R * block, M): of R heads the queries `start` to `start + block` of a document over M keys, a
            multiple of 16.
        block: so many queries.
        start: the first of them.
    """
    rows, width = scores.shape[0] * scores.shape[1], scores.shape[2]
    _lib().causal(scores.data_ptr(), rows, block, width, start)
    return scores


def causal_backward(grad: Tensor, p: Tensor, block: int, start: int) -> Tensor:
    """The gradient of the scores, in place of that of the probabilities p: `p (G - rowsum(p G))`; shapes as for `causal`."""
    rows, width = p.shape[0] * p.shape[1], p.shape[2]
    _lib().causal_back(grad.data_ptr(), p.data_ptr(), rows, block, width, start)
    return grad
