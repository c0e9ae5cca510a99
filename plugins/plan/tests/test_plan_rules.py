from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from lightning_ft_plan.command import parser
from lightning_ft_plan.forecast import TIGHT, TIGHT_MEASURED, Row
from lightning_ft_plan.machine import Target, machine_memory, parse_memory, show_memory
from lightning_ft_plan.rules import GOALS, Kind, advise, enough, recommend

from lightning_ft.builtin import SFT
from lightning_ft.errors import UsageError
from lightning_ft.quantization import Quantization
from lightning_ft.registry import registry

if TYPE_CHECKING:
    from lightning_ft.method import Method

GB = 10**9


def row(name: str, size: float, *, measured: bool = False) -> Row:
    stored = Quantization(quantize="nf4") if "nf4" in name else None
    return Row(name, name.partition(" ")[0], {}, stored, parts={"weights": int(size)}, measured=measured)


def ways(quantised: float, adapter: float, full: float) -> dict[Kind, Row]:
    return {
        "quantised": row("lora + nf4", quantised * GB), "adapter": row("lora", adapter * GB), "full": row("full", full * GB),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * GB), ("24GiB", 24 * 2**30), ("80 gb", 80 * GB), ("0.5GB", GB // 2), ("512MB", 512 * 10**6),
        (" 1.5 TiB ", 3 * 2**39), ("16gib", 2**34),
    ],
)  # fmt: skip
def test_memory_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["24", "", "GB", "-8GB", "0GB", "24 G B", "much", "24GBs", "1e3GB", "nan GB", "100B"])
def test_memory_without_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Expected --memory to be a size above 0 with its unit, as 24GB or 24GiB; got"):
        parse_memory(text)


def test_sizes_are_shown_in_their_unit() -> None:
    assert (show_memory(1.5e9), show_memory(2e8)) == ("1.50 GB", "200 MB")


def test_a_gpu_that_is_not_here_has_no_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="Expected --memory with --device gpu"):
        machine_memory("gpu")


def test_formats_of_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    target = Target("gpu", 24 * GB, "auto")
    assert target.formats(trains_base=False).weights == torch.bfloat16
    assert target.formats(trains_base=True).weights == torch.float32


@pytest.mark.parametrize(("memory", "said"), [(8, "QLoRA"), (12, "LoRA"), (24, "LoRA"), (80, "full fine-tuning")])
def test_the_usual_way_for_the_memory_is_named(memory: int, said: str) -> None:
    found = recommend(ways(7, 17, 120), memory * GB, "one_task", 20_000, 7e9)
    assert found.reasons[0].startswith(f"with {memory}.00 GB {said} is usual")


def test_what_fits_is_recommended_and_not_what_is_usual() -> None:
    small = recommend(ways(1, 2, 30), 8 * GB, "one_task", 20_000, 1e9)
    assert small.row == "lora", "it fits below 12 GB, too"
    large = recommend(ways(7, 17, 120), 80 * GB, "one_task", 20_000, 7e9)
    assert large.row == "lora"
    assert any("full would take 120.00 GB" in reason for reason in large.reasons)
    assert recommend(ways(7, 17, 60), 80 * GB, "one_task", 20_000, 7e9).row == "full"
    assert recommend(ways(7, 17, 120), 8 * GB, "one_task", 20_000, 7e9).row == "lora + nf4"


def test_how_the_base_is_stored_is_typed_in_full() -> None:
    stored = Quantization(quantize="nf4", double_quant=True, compute_dtype="bf16")
    rows = ways(7, 17, 120) | {"quantised": replace(row("lora + nf4 double", 7 * GB), stored=stored)}
    found = recommend(rows, 8 * GB, "domain_shift", 20_000, 7e9)
    assert found.flags == (
        "--method", "lora", "--method.rank", "8", "--quantize", "nf4", "--double_quant", "true", "--compute_dtype", "bf16",
    )  # fmt: skip


def test_few_rows_speak_against_full_fine_tuning() -> None:
    found = recommend(ways(7, 17, 60), 80 * GB, "one_task", 9_999, 7e9)
    assert found.row == "lora"
    assert "full fine-tuning wants 10,000 rows and more, and there are 9,999" in found.reasons


def test_goals_decide_way_and_rank() -> None:
    found = {goal: recommend(ways(7, 17, 60), 80 * GB, goal, 20_000, 7e9) for goal in GOALS}
    assert found["several_tasks"].flags == ("--method", "lora")
    assert found["domain_shift"].flags == ("--method", "lora", "--method.rank", "8")
    assert found["new_task"].flags == ("--method", "full")
    few = recommend(ways(7, 17, 60), 80 * GB, "new_task", 500, 7e9)
    assert few.flags == ("--method", "lora", "--method.rank", "64")


def test_a_quantised_base_is_typed() -> None:
    found = recommend(ways(7, 17, 120), 8 * GB, "one_task", 2_000, 7e9)
    assert found.flags == ("--method", "lora", "--quantize", "nf4")


def test_nothing_fits() -> None:
    found = recommend(ways(7, 17, 120), 4 * GB, "one_task", 2_000, 7e9)
    assert (found.row, found.flags) == (None, ())
    assert "--gradient_checkpointing true" in found.reasons[-1]


def test_ways_without_a_forecast_are_not_said_to_be_too_large() -> None:
    found = recommend({"full": row("full", GB)}, 24 * GB, "one_task", 2_000, 7e9)
    assert (found.row, found.flags) == (None, ())
    assert found.reasons[-1].startswith("of LoRA or QLoRA there is no forecast")


def test_a_prediction_near_the_limit_is_tight_and_a_measurement_later() -> None:
    assert row("lora", TIGHT * 10 * GB).verdict(10 * GB) == "fits"
    assert row("lora", TIGHT * 10 * GB + 1).verdict(10 * GB) == "tight"
    assert row("lora", 0.9 * 10 * GB, measured=True).verdict(10 * GB) == "fits"
    assert row("lora", TIGHT_MEASURED * 10 * GB + 1, measured=True).verdict(10 * GB) == "tight"
    assert row("lora", 10 * GB).verdict(10 * GB) == "tight"
    assert row("lora", 10 * GB + 1).verdict(10 * GB) == "does not fit"


@pytest.mark.parametrize(
    ("parameters", "kind", "usual"),
    [
        (0.9e9, "adapter", "500 to 1,000"), (7e9, "adapter", "1,000 to 2,000"), (7e10, "adapter", "2,000 to 5,000"),
        (7e9, "full", "10,000 and more for full fine-tuning"), (7e9, "adapter", "1,000 to 10,000 for LoRA"),
    ],
)  # fmt: skip
def test_rows_are_held_against_what_is_usual(parameters: float, kind: Kind, usual: str) -> None:
    assert usual in enough(3_000, parameters, kind)[0]


def test_few_rows_are_said_to_be_few() -> None:
    assert "these are few" in enough(300, 7e9, "adapter")[0]
    assert "these are few" not in enough(1_000, 7e9, "adapter")[0]


def default_method(**options: object) -> Method:
    found: Method = registry().methods.default().cls(**options)
    return found


@pytest.mark.parametrize(
    ("options", "values", "line"),
    [
        ({"rank": 256}, {}, "--method.rank 256: 4 to 64 is usual"),
        ({"rank": 2}, {}, "--method.rank 2: 4 to 64 is usual"),
        ({"rank": 16, "alpha": 100.0}, {}, "--method.alpha 100: about 2 x rank is usual, here 32"),
        ({"dropout": 0.4}, {}, "--method.dropout 0.4: 0.05 to 0.1 is usual"),
        ({}, {"learning_rate": 0.1}, "--learning_rate 0.1: 4e-05 to 0.001 is usual for lora"),
        ({}, {"epochs": 20.0}, "--epochs 20: 2 to 5 is usual"),
    ],
)
def test_unusual_options_get_a_line(options: dict[str, object], values: dict[str, float], line: str) -> None:
    assert advise(options, default_method(**options), values) == [line]


def test_usual_options_get_none() -> None:
    options = {"rank": 64, "alpha": 128.0, "dropout": 0.05}
    assert advise(options, default_method(**options), {"learning_rate": 1e-4, "epochs": 3.0}) == []
    assert advise({}, default_method(), {}) == []


def test_the_usual_rate_is_at_the_pace_of_the_objective() -> None:
    class Slow(SFT):
        pace = 0.1

    assert advise({}, default_method(), {"learning_rate": 2e-5}, Slow()) == []
    assert advise({}, default_method(), {"learning_rate": 2e-3}, Slow()) != []
    assert advise({}, default_method(), {"learning_rate": 2e-5}) != []


def test_flags_are_divided_between_the_command_and_fit() -> None:
    words = ["--memory=24GB", "m", "--execute", "--data", "a", "b", "--goal", "new_task", "--method.rank", "8", "--epochs=2"]
    own, rest = parser().parse_known_args(words)
    assert (own.memory, own.execute, own.goal, own.device, own.json) == ("24GB", True, "new_task", None, None)
    assert rest == ["m", "--data", "a", "b", "--method.rank", "8", "--epochs=2"]
