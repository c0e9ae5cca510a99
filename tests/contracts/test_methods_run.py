"""Every registered method in real runs: going on from the middle, loading without us, training an adapter on, real models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lightning_ft
from lightning_ft.errors import UsageError
from lightning_ft.loading import embedded_folder
from lightning_ft.registry import registry
from lightning_ft.testing.methods import inputs, logits, trained
from lightning_ft.testing.models import FAMILIES, tiny_backbone_folder
from lightning_ft.testing.runs import check_resume, saved_weights

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.testing.models import Family
    from lightning_ft.testing.stranger import Stranger

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    return {family: tiny_backbone_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.mark.parametrize("name", list(registry().methods))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_goes_on_from_its_middle_loads_without_us_and_is_trained_on(
    name: str, family: Family, rows: Path, folders: dict[Family, Path], stranger: Stranger, tmp_path: Path
) -> None:
    cls = registry().methods[name].cls
    given: dict[str, Any] = {"data": rows, "method": name, "packing": "on" if cls.can_pack else "off", **OPTIONS}
    if isinstance(trained(cls, family), UsageError):
        with pytest.raises(UsageError, match=f"--method {name}"):
            lightning_ft.fit(model=str(folders[family]), output=str(tmp_path / "run"), **given)
        return
    run = check_resume(tmp_path, 4, model=str(folders[family]), **given)
    assert len([line for line in run.metrics if "loss" in line]) == 8
    final = run.folder / "final_model"

    assert run._loaded is not None
    torch.testing.assert_close(stranger.logits(final, inputs())[:, -24:], logits(run._loaded.model))

    if not cls.can_continue:
        with pytest.raises(UsageError, match="method"):
            lightning_ft.fit(model=str(final), output=str(tmp_path / "on"), **given)
        return
    still = {**given, "max_steps": 1, "learning_rate": 1e-12, "warmup": 0}  # a step that leaves what was loaded as it is
    on = lightning_ft.fit(model=str(final), output=str(tmp_path / "on"), **still)
    torch.testing.assert_close(saved_weights(on.folder / "final_model"), saved_weights(final), atol=1e-6, rtol=0)


SLOW = {"adalora"}
"""Start from singular values of zero between two random factors, so that the first steps hardly move them."""


@pytest.mark.parametrize("name", list(registry().methods))
@pytest.mark.parametrize("model", ["embedded", "stories260k"])
def test_the_loss_of_held_out_rows_falls_on_a_real_model(
    model: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = model if model == "embedded" else str(request.getfixturevalue("shared_data") / "lm_stories260k" / "hf")
    support = embedded_folder().parent / "data" / "support.jsonl"
    steps = 12 if name not in SLOW else 30
    options: dict[str, Any] = {
        "max_steps": steps, "eval_every": steps // 2, "batch_size": 4, "warmup": 0, "verdict_rows": 0, "preflight": False,
        "output": str(tmp_path / "run"), "split": [0.8, 0.1, 0.1],
    }  # fmt: skip
    if isinstance(trained(registry().methods[name].cls, "llama"), UsageError):  # the real models are Llamas, too
        with pytest.raises(UsageError, match=f"--method {name}"):
            lightning_ft.fit(model=folder, data=support, method=name, **options)
        return
    run = lightning_ft.fit(model=folder, data=support, method=name, **options)
    losses = [line["val_loss"] for line in run.metrics if "val_loss" in line]
    assert len(losses) == 2
    assert losses[-1] < losses[0]
