"""How much memory there is, and the size of micro-batches that follows from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

import lightning_ft
from lightning_ft.run.memory import machine_memory, micro_tokens
from lightning_ft.run.world import World

GB = 10**9
EIGHT_BILLION: dict[str, Any] = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336}


@pytest.mark.parametrize(
    ("gigabytes", "tokens"), [(4, 256), (8, 256), (24, 1024), (48, 2048), (80, 4096), (141, 4096), (2000, 16384)]
)
def test_a_micro_batch_fills_about_a_quarter_of_the_memory(gigabytes: int, tokens: int) -> None:
    """8 B parameters keep 2 x 32 x (8 x 4096 + 3 x 14336) = 4.8 MB a token."""
    assert micro_tokens(LlamaConfig(**EIGHT_BILLION), "cuda", gigabytes * GB) == tokens


def test_recomputed_layers_leave_room_for_more() -> None:
    config = LlamaConfig(**EIGHT_BILLION)
    assert micro_tokens(config, "cuda", 24 * GB, recomputed=True) == 8 * micro_tokens(config, "cuda", 24 * GB)


def test_a_cpu_takes_no_more_than_is_fast() -> None:
    assert micro_tokens(LlamaConfig(**EIGHT_BILLION), "cpu", 2000 * GB) == 2048
    assert micro_tokens(LlamaConfig(**EIGHT_BILLION), "cpu", 24 * GB) == 1024


def test_a_model_without_these_sizes_has_the_most() -> None:
    assert micro_tokens(GPT2Config(n_embd=4096, n_layer=32), "cuda", 24 * GB) == 1024, "its feed-forward size is 4 x 4096"
    assert micro_tokens(PretrainedConfig(), "cuda", 24 * GB) == 16384
    assert micro_tokens(LlamaConfig(**EIGHT_BILLION), "cuda", None) == 16384


def test_a_container_may_have_less_than_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for said, expected in (("1000000\n", 1_000_000), ("max\n", whole), (f"{whole * 2}\n", whole)):
        monkeypatch.setattr(Path, "read_text", lambda self, said=said: said)
        assert machine_memory() == expected


def test_a_system_that_does_not_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert machine_memory() is None


@pytest.mark.parametrize(("devices", "there"), [(3, 3), ("0,2", 2), ("[1]", 1)])
def test_processes_of_this_machine(devices: int | str, there: int) -> None:
    assert World(8, devices, 0).on_machine == there


def test_a_run_says_so_where_it_takes_less(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_ft.run.session.device_memory", lambda device: 400_000)
    options = {"max_steps": 1, "verdict_rows": 0, "preflight": False, "split": [1.0, 0.0], "output": str(tmp_path / "run")}
    lightning_ft.fit(model=str(tiny_folder / "llama"), data=str(tiny_folder / "rows.jsonl"), **options)
    assert "micro-batches: at most 256 tokens" in capsys.readouterr().err
