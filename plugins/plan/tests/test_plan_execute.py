from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_plan.forecast import RUNTIME, Row
from lightning_ft_plan.hollow import PARTS
from lightning_ft_plan.trial import measured

from lightning_ft.config import TrainingConfig
from lightning_ft.quantization import Quantization
from lightning_ft.testing.models import tiny_backbone_folder, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(n % 60 + 5)))} for n in range(64)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders of this test, empty at its start."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def middling_model(folder: Path) -> Path:
    """12 M parameters without pretraining: large enough that a step takes more than the libraries' own whims."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=260, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=256, bos_token_id=257, eos_token_id=259,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]  # nn.Module.to is overloaded oddly there
    return folder


def test_the_preflight_takes_the_place_of_the_forecast(rows: Path, tmp_path: Path, no_leftovers: Path) -> None:
    """In a process of its own, as the memory of this one holds whatever other tests left; with the core's method alone."""
    folder = middling_model(tmp_path / "model")
    options = ["--batch_tokens", "1024", "--max_steps", "3", "--execute", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_ft", "plan", str(folder), "--data", str(rows), *options],
        env={**os.environ, "LIGHTNING_FT_DISABLE_PLUGINS": "methods"}, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["methods"]
    assert row["name"] == "full"
    assert row["measured"], row["note"]
    assert sum(row["parts"].values()) == row["memory"]
    assert row["memory"] != row["predicted"]
    assert row["predicted"] == pytest.approx(row["memory"], rel=0.25)
    assert row["total_seconds"] > 0
    assert [path.name for path in no_leftovers.iterdir() if not path.name.startswith("torchinductor")] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["lora", "lora + nf4", "boft"])
def test_adapters_are_measured_also_on_a_quantised_base(name: str, rows: Path, tmp_path: Path, no_leftovers: Path) -> None:
    pytest.importorskip("lightning_ft_methods")
    pytest.importorskip("lightning_ft_quantize")
    folder = tiny_backbone_folder(tmp_path / "model")
    given = dict.fromkeys((*PARTS, RUNTIME), 10**6)
    stored = Quantization(quantize="nf4") if "nf4" in name else None
    row = Row(name, name.partition(" ")[0], {}, stored, parts=given)
    config = TrainingConfig(model=str(folder), data=[str(rows)], max_steps=2, batch_size=4)
    found = measured(row, config)
    assert found.measured, found.note
    assert found.predicted == row.total
    assert found.total > 100 * 10**6, "a process that has imported torch"
    assert len({found.parts[part] for part in PARTS}) == 1, "the total is measured, and parted as the forecast was"
    assert found.total_seconds is not None
    assert [path.name for path in no_leftovers.iterdir() if not path.name.startswith("torchinductor")] == []


def test_what_fails_is_told_and_the_forecast_stays(rows: Path, tmp_path: Path, no_leftovers: Path) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    config = TrainingConfig(model=str(folder), data=[str(rows)])
    row = Row("lora", "lora", {}, parts=dict.fromkeys((*PARTS, RUNTIME), 1))
    found = measured(row, config)
    assert not found.measured
    assert found.parts == row.parts
    assert found.note.startswith("could not be measured: ")
    assert "Expected weights in" in found.note
    assert list(no_leftovers.iterdir()) == []


@pytest.mark.parametrize(("name", "quantize"), [("lora", None), ("lora + int8", "int8")])
def test_a_plain_row_is_measured_on_a_plain_base(name: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def process(values: Any, folder: Path) -> tuple[None, str]:
        seen.append(values)
        return None, "no run here"

    monkeypatch.setattr("lightning_ft_plan.trial._process", process)
    config = TrainingConfig(model="m", data=["d"], method="lora", quantize="int8")
    stored = None if quantize is None else Quantization(quantize="int8")
    measured(Row(name, "lora", {}, stored, parts=dict.fromkeys((*PARTS, RUNTIME), 1)), config)
    assert [values["quantize"] for values in seen] == [quantize]
    # A file of rows to be retained is refused where no verdict is made.
    assert [(values["verdict_rows"], values["retention"]) for values in seen] == [(0, "none")]
