"""Every registered method in real runs: a run that goes on from its middle ends with the same bits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.loading import embedded_folder
from lightning_ft.registry import registry
from lightning_ft.testing.methods import trained
from lightning_ft.testing.models import tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.testing.models import Family

pytestmark = pytest.mark.usefixtures("module_cache")
OPTIONS: dict[str, Any] = {
    "max_steps": 8, "eval_every": 4, "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "preflight": False,
    "keep_best": 5, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 9 + 1)))} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "final_model"
    return load_file(
        next(folder / name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).is_file())
    )


@pytest.mark.parametrize("name", list(registry().methods))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_that_goes_on_from_its_middle_ends_with_the_same_bits(
    name: str, family: Family, rows: Path, tmp_path: Path
) -> None:
    model = tiny_backbone_folder(tmp_path / "model", family)
    refused = trained(registry().methods[name].cls, family)
    if isinstance(refused, UsageError):
        with pytest.raises(UsageError, match=f"--method {name}"):
            lightning_ft.fit(model=str(model), data=rows, method=name, output=str(tmp_path / "run"), **OPTIONS)
        return
    run = lightning_ft.fit(model=str(model), data=rows, method=name, output=str(tmp_path / "run"), **OPTIONS)
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert len(losses) == 8
    other = tmp_path / "copy"
    resume = str(stopped_at(run.folder, other, 4))
    lightning_ft.fit(
        model=str(model),
        data=rows,
        method=name,
        output=str(tmp_path / "run"),
        resume=resume,
        **OPTIONS,
    )
    mine, theirs = weights(run.folder), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    assert [
        line["loss"] for line in map(json.loads, (other / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ] == losses


SLOW = {"adalora"}
"""Start from singular values of zero between two random factors, so that the first steps hardly move them."""


@pytest.mark.parametrize("name", list(registry().methods))
@pytest.mark.parametrize("model", ["embedded", "stories260k"])
def test_the_loss_of_held_out_rows_falls_on_a_real_model(
    model: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = model if model == "embedded" else str(request.getfixturevalue("shared_data") / "lm_stories260k" / "hf")
    support = embedded_folder().parent / "data" / "support.jsonl"
    options: dict[str, Any] = {
        "max_steps": 12 if model == "embedded" and name not in SLOW else 40, "batch_size": 8, "eval_every": 3, "warmup": 0,
        "verdict_rows": 0, "preflight": False, "output": str(tmp_path / "run"),
    }  # fmt: skip
    try:
        run = lightning_ft.fit(model=folder, data=support, method=name, **options)
    except UsageError as error:
        pytest.skip(f"{name} refuses {model}: {error}")
    losses = [line["val_loss"] for line in run.metrics if "val_loss" in line]
    assert len(losses) >= 4
    assert losses[-1] < losses[0]
