"""Suites can be run, result files are whole, and the arithmetic between them is right. Nothing is measured here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import report, scaling, vocab
from benchmarks.baselines import plain_torch
from benchmarks.machine import BF16_FLAGS
from benchmarks.products import needed_flops, products
from benchmarks.run import HERE, SCHEMA, Bench, Suite, ratios, summarise
from benchmarks.score import score
from benchmarks.setting import Setting, build, encode
from lightning_ft.run import hardware

SUITES = sorted(path.stem for path in (HERE / "suites").glob("*.yaml"))
RESULTS = sorted(path for path in (HERE / "results").glob("*.json") if not path.name.startswith("trial_"))


def result(**changes: Any) -> dict[str, Any]:
    """Two rounds in which `ours` is 3 and then 2.5 times as fast as `peer`, with half its memory."""
    rounds = [
        {"round": 1, "contestant": "ours", "load_before": 0.1, "metrics": {"examples_per_s": 6.0, "peak_mb": 50.0}},
        {"round": 1, "contestant": "peer", "load_before": 0.1, "metrics": {"examples_per_s": 2.0, "peak_mb": 100.0}},
        {"round": 2, "contestant": "ours", "load_before": 0.1, "metrics": {"examples_per_s": 5.0, "peak_mb": 50.0}},
        {"round": 2, "contestant": "peer", "load_before": 0.1, "metrics": {"examples_per_s": 2.0, "peak_mb": 100.0}},
    ]
    targets = [
        {"metric": "examples_per_s", "of": "ours", "over": "peer", "at_least": 2.7},
        {"metric": "peak_mb", "of": "ours", "over": "peer", "at_most": 0.5},
        {"metric": "examples_per_s", "of": "ours", "at_least": 5.5},
    ]
    return {
        "schema": SCHEMA, "suite": "s", "title": "t", "date": "2026-01-01T00:00:00+00:00", "revision": None, "complete": True,
        "hardware": {"cpu": "c", "cores": 2, "threads": 2, "memory_gb": 8.0, "flags": []}, "versions": {"main": {"torch": "2"}},
        "rounds": rounds, "summary": summarise(rounds), "ratios": ratios(rounds, targets), "targets": targets, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("name", SUITES)
def test_suite_names_modules_that_exist(name: str) -> None:
    suite = Suite.load(name)
    # A round of 5 GB is half an hour, one of plan 36 processes whose 18 cells are the spread; on a GPU steps are the spread.
    # What packing makes of rows is the same each time; each case of signs has five seeds of its own.
    assert (
        suite.rounds >= 3
        or suite.name in ("contracts", "scale", "plan", "plan_quantised", "packing", "signs")
        or suite.needs == "gpu"
    )
    for spec in suite.contestants.values():
        if "module" in spec:
            assert HERE.parent.joinpath(*spec["module"].split(".")).with_suffix(".py").is_file()
        if "venv" in spec:
            assert "torch==" in (HERE / f"{spec['venv']}.txt").read_text(encoding="utf-8")


def test_cpu_sft_holds_ours_against_every_peer() -> None:
    suite = Suite.load("cpu_sft")
    targets = {(t["metric"], t["over"]): t for t in suite.targets if t["of"] == "ours"}
    peers = {name for name, spec in suite.contestants.items() if "venv" in spec}
    assert {name for metric, name in targets if metric == "examples_per_s"} == peers
    assert {name for metric, name in targets if metric == "peak_mb"} == peers
    for name in peers:
        assert targets["examples_per_s", name]["at_least"] == (5.5 if name == "trl" else 2.8)
        assert targets["peak_mb", name]["at_most"] == 0.42
    assert targets["flops_per_s", "gemm"]["at_least"] == 0.75
    assert targets["heldout_loss", "trl"]["within"] == 0.01


def test_cpu_full_holds_ours_against_every_setting_of_the_trainer() -> None:
    suite = Suite.load("cpu_full")
    faster = {t["over"]: t["at_least"] for t in suite.targets if t["metric"] == "examples_per_s"}
    assert faster == dict.fromkeys((name for name in suite.contestants if name.startswith(("hf_trainer", "litgpt"))), 2.5)
    assert {t["over"] for t in suite.targets if t["metric"] == "heldout_loss"} >= {"hf_trainer", "trl", "plain_torch"}


def test_unknown_suite_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="cpu_sft"):
        Suite.load("cpu_stf")


def test_ratio_is_of_the_same_round() -> None:
    found = result()["ratios"][0]
    assert found["per_round"] == [3.0, 2.5]
    assert (found["median"], found["min"], found["max"]) == (2.75, 2.5, 3.0)


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"at_least": 2.8}, 3), ({"over": "nobody"}, 3), ({"metric": "unknown"}, 3)],
)
def test_missed_target_ends_with_3(change: dict[str, Any], code: int, tmp_path: Path) -> None:
    content = result()
    content["targets"][0].update(change)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert report.main([str(file)]) == code


def test_within_bounds_both_sides() -> None:
    for ours, met in ((10.05, True), (9.95, True), (10.2, False), (9.8, False)):
        rounds = [
            {"round": 1, "contestant": "ours", "metrics": {"heldout_loss": ours}},
            {"round": 1, "contestant": "peer", "metrics": {"heldout_loss": 10.0}},
        ]
        targets = [{"metric": "heldout_loss", "of": "ours", "over": "peer", "within": 0.01}]
        checked = report.check(result(rounds=rounds, targets=targets, ratios=ratios(rounds, targets)))
        assert [ok for _, ok in checked] == [met]


def test_trial_is_not_held_against_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = result(complete=False)
    content["targets"][0]["at_least"] = 100
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert report.main([str(file)]) == 0
    assert "trial" in capsys.readouterr().out


def test_report_refuses_half_a_result(tmp_path: Path) -> None:
    content = result()
    del content["hardware"]
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert report.main([str(file)]) == 2


@pytest.mark.skipif(not RESULTS, reason="no result file is committed yet: make bench")
@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_result_file_is_whole(file: Path) -> None:
    content = report.load(file)
    assert content["complete"], "a trial does not belong into results/"
    assert content["schema"] == SCHEMA
    assert content["hardware"]["cpu"]
    assert content["versions"]["main"]["torch"]
    assert content["summary"] == summarise(content["rounds"])
    assert content["ratios"] == ratios(content["rounds"], content["targets"])
    suite = Suite.load(content["suite"])
    # A suite may have grown since; what it had then stands in the file.
    assert set(content["summary"]) == set(content["contestants"])
    assert set(content["contestants"]) <= set(suite.contestants)
    assert {entry["round"] for entry in content["rounds"]} == set(range(1, len({e["round"] for e in content["rounds"]}) + 1))
    assert report.render(content)


def test_commands_are_timed_from_outside(tmp_path: Path) -> None:
    spec = {"command": ["python", "-c", "import time; x = bytearray(200 << 20); time.sleep(0.2); raise SystemExit(2)"]}
    suite = Suite("s", "t", 1, {"big": {**spec, "exit_code": 2}, "wrong": spec}, [])
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    bench = Bench(suite, {"main": str(python)}, tmp_path, None, 1, 60)
    metrics = bench.measure("big", 1)["metrics"]
    assert 0.2 < metrics["wall_s"] < 30
    assert metrics["peak_mb"] > 200
    with pytest.raises(RuntimeError, match="wrong ended with 2"):
        bench.measure("wrong", 1)


def test_contestants_get_no_tuning_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = Bench(Suite("s", "t", 1, {}, []), {}, tmp_path, None, 2, 60).environment(1)
    assert "MALLOC_MMAP_MAX_" not in found
    assert found["OMP_NUM_THREADS"] == "2"


def test_the_page_shows_the_newest_result_of_each_suite() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    assert report.page(text, report.newest(HERE / "results")) == text, "type `python -m benchmarks.report --write`"
    assert {result["suite"] for result in report.newest(HERE / "results")} == {report.load(path)["suite"] for path in RESULTS}


def test_without_fast_bf16_contestants_that_need_it_and_targets_that_name_them_are_left_out() -> None:
    suite = Suite.load("cpu_full").without({"bf16"})
    assert {"ours", "hf_trainer", "hf_trainer_heap", "gemm", "trl"} <= set(suite.contestants)
    assert not {"ours_split", "ours_pure", "hf_trainer_pure", "hf_trainer_pure_heap"} & set(suite.contestants)
    compared = {(target["of"], target["over"]) for target in suite.targets if target["metric"] == "examples_per_s"}
    assert compared == {("ours", peer) for peer in ("hf_trainer", "hf_trainer_heap", "litgpt", "litgpt_heap")}
    assert Suite.load("cpu_full").without(set()) == Suite.load("cpu_full")
    assert BF16_FLAGS == hardware.BF16_FLAGS


@pytest.mark.parametrize("bf16", [True, False])
def test_baselines_compute_in_the_format_of_the_machine(
    bf16: bool, small_setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plain = set(), torch.nn.functional.linear

    def linear(*args: torch.Tensor | None) -> torch.Tensor:
        found = plain(*args)  # type: ignore[arg-type]  # as it was called
        seen.add(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    plain_torch.train(replace(small_setting, options={**small_setting.options, "bf16": bf16}))
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


def test_variables_of_a_contestant_are_its_own(tmp_path: Path) -> None:
    code = "import json, os, sys; json.dump({'n': int(os.environ.get('MALLOC_MMAP_MAX_', '7'))}, open(sys.argv[1], 'w'))"
    spec = {"command": ["python", "-c", code, "{out}/measure.json"]}
    suite = Suite("s", "t", 1, {"with": {**spec, "env": {"MALLOC_MMAP_MAX_": "0"}}, "without": spec}, [])
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    # Braces are the runner's, for folder and round.
    spec["command"][2] = code.replace("{", "{{").replace("}", "}}")
    bench = Bench(suite, {"main": str(python)}, tmp_path, None, 1, 60)
    assert [bench.measure(name, 1)["metrics"]["n"] for name in ("with", "without")] == [0, 7]


def test_needed_work_is_that_of_the_formula() -> None:
    """One layer of width 4 with one head of keys, feed-forward 6, vocabulary 10.

    Weights of the products without the head: queries, keys, values, output 4 * 16, feed-forward 3 * 24, 136 in all; head
    40. Adapters of rank 1: 4 * (4 + 4) + 3 * (4 + 6) = 62 weights. 7 tokens, of which 3 are supervised:
    full 6 * (136 * 7 + 40 * 3) = 6432; LoRA 4 * (136 * 7 + 40 * 3) + 6 * 62 * 7 = 6892.
    """
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    options = {"shape": {**shape, "intermediate_size": 6}, "vocab_size": 10, "train_tokens": 7, "train_supervised_tokens": 3}
    assert needed_flops({**options, "method": "full"}) == 6432
    assert needed_flops({**options, "rank": 1}) == 6892


@pytest.fixture(scope="module")
def small_setting(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    options = dict(Suite.load("cpu_sft").setting or {})
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
    }
    options |= {"shape": shape, "vocab_size": 1024, "train_rows": 24, "heldout_rows": 4}
    return build(options, shared_data, tmp_path_factory.mktemp("setting"))


def test_setting_is_the_same_tokens_for_everybody(small_setting: Setting) -> None:
    from transformers import AutoTokenizer

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.types import Conversation, Message

    tokenizer = AutoTokenizer.from_pretrained(small_setting.model)
    assert len(tokenizer) == 1024
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 512)
    rows = small_setting.rows("train")
    examples = [Conversation(tuple(Message(m["role"], m["content"]) for m in messages)) for messages in rows]
    for messages, ours in zip(rows, encoder.encode(examples, [str(i) for i in range(len(rows))]), strict=True):
        assert {"input_ids": ours.input_ids, "labels": ours.labels} == encode(tokenizer, messages, 512)


@pytest.fixture(scope="module")
def full_setting(small_setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The same rows and model, of which all weights train."""
    folder = tmp_path_factory.mktemp("setting") / "full"
    shutil.copytree(small_setting.folder, folder)
    options = {name: value for name, value in small_setting.options.items() if name not in ("rank", "alpha")}
    (folder / "setting.json").write_text(json.dumps({**options, "method": "full"}), encoding="utf-8")
    return Setting.load(folder)


def test_products_are_those_of_the_model(small_setting: Setting) -> None:
    found = sum(product.in_features * product.out_features * product.count for product in products(small_setting.options))
    assert found == small_setting.options["product_parameters"]


def measure(out: Path, module: str, *words: str) -> dict[str, Any]:
    """What a contestant measures of itself."""
    environment = {**os.environ, "LIGHTNING_FT_CACHE": str(out / "cache")}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "measure.json").read_text(encoding="utf-8"))
    return found


def changed(trained: str, base: str) -> bool:
    """Whether every tensor is another than before; `lora_B` is zero before training, `lora_A` not the same in two runs."""
    folder = Path(trained)
    if (folder / "adapter_model.safetensors").is_file():
        return all(tensor.any() for name, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_B" in name)
    before, after = (load_file(Path(where) / "model.safetensors") for where in (base, trained))
    return before.keys() == after.keys() and not any(before[name].float().equal(after[name].float()) for name in before)


@pytest.mark.parametrize("setting", ["small_setting", "full_setting"])
@pytest.mark.parametrize(
    "module", ["benchmarks.ours", "benchmarks.baselines.plain_torch", "benchmarks.baselines.plain_lightning"]
)
def test_contestant_trains_one_epoch_and_can_be_scored(
    module: str, setting: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen: Setting = request.getfixturevalue(setting)
    measured = measure(tmp_path, module, str(chosen.folder), str(tmp_path))
    assert measured["steps"] == 3
    assert measured["examples_per_s"] > 0
    assert measured["flops_per_s"] == pytest.approx(measured["examples_per_s"] * needed_flops(chosen.options) / 24)
    assert changed(measured["trained"], chosen.model)
    assert 6 < score(chosen, Path(measured["trained"]))["heldout_loss"] < 8  # ln 1024 is 6.93: random weights, three steps


@pytest.mark.parametrize("weights", ["split", "none"])
def test_bf16_weights_of_ours_are_clocked_by_the_step(weights: str, full_setting: Setting, tmp_path: Path) -> None:
    words = (str(full_setting.folder), str(tmp_path), "precision=bf16", f"master_weights={weights}")
    assert measure(tmp_path, "benchmarks.ours", *words)["steps"] == 3


@pytest.mark.parametrize("setting", ["small_setting", "full_setting"])
def test_rate_of_the_products_is_measured_in_all_their_ways(
    setting: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(setting).folder
    found = measure(tmp_path, "benchmarks.products", str(folder), str(tmp_path))
    ways = ["forward", "inputs", *(["weights"] if setting == "full_setting" else [])]
    assert set(found) == {"flops_per_s", *(f"{way}_flops_per_s" for way in ways)}
    rates = [found[f"{way}_flops_per_s"] for way in ways]
    assert 0 < min(rates) <= found["flops_per_s"] <= max(rates)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}


def test_vocabularies_differ_in_nothing_but_the_model(tmp_path: Path) -> None:
    suite = Suite.load("cpu_vocab")
    options = {
        **(suite.setting or {}),
        "shape": SMALL,
        "words": 100,
        "vocabularies": [128, 256],
        "train_rows": 4,
    }
    setting, out = tmp_path / "setting", tmp_path / "out"
    out.mkdir()
    vocab.build(options, Path(os.devnull), setting)
    small, large = (Setting.load(vocab.cell_of(setting, size, 0.5)) for size in (128, 256))
    assert small.rows("train") == large.rows("train")
    assert large.options["parameters"] - small.options["parameters"] == 128 * 32
    for way in ("ours", "plain_torch"):
        found = measure(out, "benchmarks.vocab", str(setting), str(out), way, "256", "0.5")
        assert found["steps"] == 1
        assert found["weights_mb"] == pytest.approx(2 * large.options["parameters"] / 2**20, rel=0.1)
        assert found["beyond_weights_mb"] > 100  # torch alone
    named = {tuple(spec["args"][1:]) for spec in suite.contestants.values()}
    assert named == {
        (size, share) for size in (suite.setting or {})["vocabularies"] for share in (suite.setting or {})["supervised"]
    }


def test_a_file_of_the_scaling_suite_is_trained(tmp_path: Path) -> None:
    suite = Suite.load("scaling")
    files = {"few": {"train_rows": 24, "row_tokens": [20, 30]}, "long": {"train_rows": 4, "row_tokens": 64}}
    options = {**(suite.setting or {}), "shape": SMALL, "vocab_size": 128, "files": files}
    setting = tmp_path / "setting"
    scaling.build(options, Path(os.devnull), setting)
    assert Setting.load(setting).options["long_tokens"] == 4 * 64
    for words, steps, rows in (
        (("few",), 3, 24),
        (("few", "max_steps=2"), 2, 16),
        (("long", "batch_size=null", "batch_tokens=128"), 2, 4),
    ):
        out = tmp_path / f"out{steps}{rows}"
        out.mkdir()
        found = measure(out, "benchmarks.scaling", str(setting), str(out), *words)
        assert found["steps"] == steps
        assert found["examples_per_s"] * found["train_s"] == pytest.approx(rows)
    assert {spec["args"][0] for spec in suite.contestants.values()} == set((suite.setting or {})["files"])
