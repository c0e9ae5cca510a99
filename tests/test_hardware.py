from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lightning_ft.errors import UsageError
from lightning_ft.run import hardware
from lightning_ft.run.hardware import device_name, device_use, formats, peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from lightning_ft.config import Precision

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("precision", "trains_base", "expected"),
    [
        ("fp32", False, (F32, "32-true", "precision: fp32")),
        ("fp32", True, (F32, "32-true", "precision: fp32")),
        ("bf16", False, (BF16, "32-true", "precision: bf16 base weights, fp32 adapters")),
        ("bf16", True, (F32, "bf16-mixed", "precision: bf16 over fp32 weights")),
    ],
)
@pytest.mark.usefixtures("cpu")
def test_formats_on_a_cpu(precision: Precision, trains_base: bool, expected: tuple[object, ...]) -> None:
    found = formats(precision, trains_base=trains_base)
    assert (found.weights, found.lightning, found.sentence) == expected


@pytest.mark.parametrize(
    ("precision", "trains_base", "expected"),
    [
        ("fp32", False, (F32, "32-true", "precision: fp32")),
        ("bf16", False, (BF16, "bf16-mixed", "precision: bf16 weights, fp32 adapters, bf16 arithmetic")),
        ("bf16", True, (F32, "bf16-mixed", "precision: bf16 over fp32 weights")),
        ("fp16", False, (F16, "16-mixed", "precision: fp16 weights, fp32 adapters, fp16 arithmetic")),
        ("fp16", True, (F32, "16-mixed", "precision: fp16 over fp32 weights")),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_formats_on_a_gpu(precision: Precision, trains_base: bool, expected: tuple[object, ...]) -> None:
    found = formats(precision, trains_base=trains_base)
    assert (found.weights, found.lightning, found.sentence) == expected


@pytest.mark.usefixtures("cpu")
def test_half_precision_needs_a_gpu() -> None:
    for trains_base in (True, False):
        with pytest.raises(UsageError) as caught:
            formats("fp16", trains_base=trains_base)
        assert str(caught.value) == "Expected a GPU for --precision fp16, found none; type --precision bf16 or fp32."


@pytest.mark.parametrize(("fast", "name"), [(True, "bf16"), (False, "fp32")])
@pytest.mark.usefixtures("cpu")
def test_auto_is_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool, name: Precision) -> None:
    monkeypatch.setattr(hardware, "bf16_is_fast", lambda: fast)
    found, named = formats("auto", trains_base=False), formats(name, trains_base=False)
    assert (found.weights, found.lightning) == (named.weights, named.lightning)
    said = "fast on this machine" if fast else "no fast bf16 on this machine"
    assert found.sentence == f"{named.sentence} ({said})"


def test_a_real_product_in_the_chosen_format() -> None:
    chosen = formats("auto", trains_base=False)
    product = torch.ones(4, 4, dtype=chosen.weights) @ torch.ones(4, 4, dtype=chosen.weights)
    assert product.dtype == chosen.weights
    assert product.tolist() == [[4.0] * 4] * 4


def test_what_the_machine_is() -> None:
    assert device_name().strip()
    before = peak_memory()
    kept = torch.ones(16 * 2**20 if not torch.cuda.is_available() else 1)
    assert peak_memory() >= before > 2**20
    del kept


def test_device_use_is_the_share_of_all_threads(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds of processor in two seconds of two threads: three quarters."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert device_use(3.0, 2.0) == 0.75
    assert device_use(5.0, 2.0) == 1.0
    assert device_use(0.0, 0.0) is None


def test_device_use_of_a_gpu_is_the_drivers_or_nobodys(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", lambda: 87)
    assert device_use(1.0, 1.0) == 0.87
    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert device_use(1.0, 1.0) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget a peak")
def test_a_peak_can_be_forgotten(cpu: None) -> None:
    """Of pages that go back to the system at once, as those of a tensor need not."""
    reset_peak_memory()
    size = 200_000_000
    with mmap.mmap(-1, size) as held:
        held[:] = bytes(1) * size
        with_it = peak_memory()
    reset_peak_memory()
    assert peak_memory() < with_it - size // 2


@pytest.mark.parametrize(
    ("there", "switch", "state", "words"),
    [
        (True, "", "ok", "compiled for this processor"),
        (False, "", "note", "no C compiler that works"),
        (False, "off", "ok", "LIGHTNING_FT_NATIVE is set"),
    ],
)
def test_doctor_says_whether_there_are_compiled_kernels(
    there: bool, switch: str, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_ft.cli.doctor import _kernels
    from lightning_ft.engine import native_kernels

    monkeypatch.setattr(native_kernels, "library", lambda: object() if there else None)
    monkeypatch.setenv(native_kernels.SWITCH, switch)
    found = _kernels()
    assert found.state == state
    assert words in found.detail
    assert ("gcc" in (found.mend or "")) == (state == "note")
