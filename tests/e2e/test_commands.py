"""Every command as a new user types it, on one run of a tiny model; and what that run leaves on disk."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from lightning_ft.atomic import broken
from lightning_ft.config import TrainingConfig, option_names

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.testing.models import Family
    from tests.e2e.conftest import Cli, Fitted

TOP = {
    "config.yaml", "run.json", "final_model", "best_model", "checkpoints", "logs", "metrics.jsonl", "ledger.json",
    "verdict.json", "report.html",
}  # fmt: skip
MODEL = {"README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "manifest.json"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}
STATE = {"trainer_state.json", "trainer_state.safetensors"}
SHORT = ("--max_new_tokens", "4")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def adapter_weights(folder: Path) -> bytes:
    return (folder / "final_model" / "adapter_model.safetensors").read_bytes()


# ---- the run folder ---------------------------------------------------------------------------------------------------


def test_fit_says_what_it_does_and_where_the_result_is(fitted: Fitted) -> None:
    assert fitted.result.out.splitlines()[-1] == "Run folder: runs/instruct_support_1"
    assert "Tuned against base model on 3 held-out rows" in fitted.result.out
    said = fitted.result.err
    assert re.search(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d+\.\d+", said)
    for beginning in ("data: 30 rows read: 24 train, 3 validation, 3 test", "precision: ", "packing: ", "preflight: "):
        assert f"\n{beginning}" in f"\n{said}"
    assert "step 6/6" in said
    # Not a terminal: plain lines, no bars, nobody's warnings.
    assert "\r" not in said
    assert "Warning" not in said


def test_the_run_folder_holds_what_is_promised_and_nothing_else(fitted: Fitted) -> None:
    assert {path.name for path in fitted.folder.iterdir()} == TOP
    assert not list(fitted.folder.rglob(".*"))
    assert not list(fitted.folder.rglob("*.ckpt"))
    assert not list(fitted.folder.rglob("*.bin"))
    steps = sorted((fitted.folder / "checkpoints").iterdir())
    assert [path.name for path in steps] == [f"checkpoint-step-{n}" for n in (2, 4, 6)]
    for folder in (fitted.folder / "final_model", fitted.folder / "best_model", *steps):
        assert {path.name for path in folder.iterdir()} == MODEL | ADAPTER | (STATE if folder in steps else set())
        assert broken(folder) is None


def test_config_yaml_is_the_whole_config(fitted: Fitted) -> None:
    values = yaml.safe_load((fitted.folder / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(option_names()) - {"resume"}
    assert TrainingConfig.from_dict(values).as_dict() == {**values, "resume": None}
    assert values["method"]["name"] == "lora"
    assert values["task"]["name"] == "instruct"
    assert (values["seed"], values["max_steps"], values["learning_rate"]) == (3, 6, 0.01)


def test_run_json_says_what_ran_where_and_how_it_ended(fitted: Fitted) -> None:
    import hashlib
    import importlib.metadata

    record = read(fitted.folder / "run.json")
    assert record["status"] == "finished"
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"lightning-ft", "lightning", "transformers", "peft"} <= set(record["versions"])
    assert {plugin["name"] for plugin in record["plugins"]} >= {"methods", "tasks"}
    assert all(plugin["version"] for plugin in record["plugins"])
    assert record["data"]["files"] == {str(fitted.data): hashlib.sha256(fitted.data.read_bytes()).hexdigest()}
    assert (record["seed"], record["total_steps"], record["steps"]) == (3, 6, 6)
    assert record["train_seconds"] > 0
    assert record["verdict_seconds"] > 0
    assert record["best_step"] in (2, 4, 6)


def test_metrics_are_complete_and_the_loss_falls(fitted: Fitted) -> None:
    rows = lines(fitted.folder / "metrics.jsonl")
    train = [row for row in rows if "loss" in row]
    validation = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in validation] == [2, 4, 6]
    assert set(train[0]) >= {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share", "peak_memory",
    }  # fmt: skip
    if not torch.cuda.is_available():  # a GPU's driver is only asked where nvidia-ml-py is there
        assert all(0 < row["device_use"] <= 1 for row in train)
        assert all(0 < row["mfu"] < 2 for row in train)  # against a rate that was measured in another moment
    assert set(validation[0]) == {"step", "epoch", "val_loss", "val_token_accuracy"}
    assert train[-1]["loss"] < train[0]["loss"]
    assert validation[-1]["val_loss"] < validation[0]["val_loss"]


def test_tensorboard_has_the_same_numbers(fitted: Fitted) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]  # it ships no types
        EventAccumulator,
    )

    events = EventAccumulator(str(fitted.folder / "logs"))
    events.Reload()
    for name in ("loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_second"):
        written = {row["step"]: row[name] for row in lines(fitted.folder / "metrics.jsonl") if name in row}
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx(written, rel=1e-5)


def test_ledger_verdict_and_report_agree(fitted: Fitted) -> None:
    ledger, verdict = read(fitted.folder / "ledger.json"), read(fitted.folder / "verdict.json")
    total = ledger["total"]
    assert total["read"] == 30 == total["train"] + total["validation"] + total["test"]
    found = {metric["metric"]: metric for metric in verdict["comparisons"]}
    assert {"loss", "perplexity", "token_accuracy", "exact_match", "rougeL"} == set(found)
    assert found["loss"]["tuned"] < found["loss"]["base"]
    kept = {metric["metric"]: metric for metric in verdict["retention"]}
    assert {metric["rows"] for metric in kept.values()} == {60}, "the general texts that are shipped"
    assert kept["loss"]["base"] > 0
    report = (fitted.folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "rougeL" in report


# ---- commands on the run ----------------------------------------------------------------------------------------------


def test_validate_finds_the_last_validation_loss_again(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    result = cli("validate", fitted.folder, "--output", tmp_path / "v")
    assert result.code == 0, result.err
    assert "perplexity" in result.out
    last = [row for row in lines(fitted.folder / "metrics.jsonl") if "val_loss" in row][-1]
    metrics = read(tmp_path / "v" / "results.json")["metrics"]
    assert metrics["loss"] == pytest.approx(last["val_loss"], rel=1e-5)
    assert metrics["token_accuracy"] == pytest.approx(last["val_token_accuracy"])


def test_test_and_evaluate_find_the_verdict_again(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    verdict = {metric["metric"]: metric for metric in read(fitted.folder / "verdict.json")["comparisons"]}
    assert cli("test", fitted.folder, "--output", tmp_path / "t").code == 0
    tested = read(tmp_path / "t" / "results.json")
    assert tested["metrics"]["loss"] == pytest.approx(verdict["loss"]["tuned"], rel=1e-5)
    # The same rows from a file of their own, by the model folder instead of the run.
    texts = fitted.data.read_text(encoding="utf-8").splitlines()
    held_out = [int(row["row"].rpartition(":")[2]) for row in lines(tmp_path / "t" / "predictions.jsonl")]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(texts[line - 1] + "\n" for line in held_out), encoding="utf-8")
    argv = ("evaluate", fitted.folder / "final_model", "--data", file, *SHORT, "--output", tmp_path / "e")
    assert cli(*argv).code == 0
    for name, value in read(tmp_path / "e" / "results.json")["metrics"].items():
        assert value == pytest.approx(verdict[name]["tuned"], rel=1e-5)


def test_evaluate_writes_beside_the_run(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted.folder, run)
    for n in (1, 2):
        result = cli("evaluate", run, "--data", fitted.data, "--max_rows", "3", "--metrics", "token_f1", *SHORT)
        assert result.code == 0, result.err
        assert result.out.splitlines()[-1] == f"Details: {run / f'eval_{n}'}"
        assert read(run / f"eval_{n}" / "results.json")["rows"] == 3
    again = cli("evaluate", run, "--data", fitted.data, "--output", run / "eval_1", *SHORT)
    assert again.code == 2
    assert again.err.strip().splitlines()[-1].endswith(f"got '{run / 'eval_1'}', which holds an evaluation; name another.")


def test_predict_then_score(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    result = cli("predict", fitted.folder, *SHORT, "--output", tmp_path / "p")
    assert result.code == 0, result.err
    rows = lines(tmp_path / "p" / "predictions.jsonl")
    assert len(rows) == 3
    assert all(isinstance(row["prediction"], str) for row in rows)
    scored = cli("score", tmp_path / "p" / "predictions.jsonl", "--metrics", "exact_match,rougeL", "--json")
    assert scored.code == 0, scored.err
    metrics = read(tmp_path / "p" / "results.json")["metrics"]
    found = json.loads(scored.out)
    assert found["rows"] == 3
    assert (found["exact_match"], found["rougeL"]) == (metrics["exact_match"], metrics["rougeL"])


def test_generate_and_chat_give_the_same_answer(fitted: Fitted, cli: Cli) -> None:
    question = "Where is order 3?"
    answers = [
        cli("generate", fitted.folder, "--prompt", question, *SHORT),
        cli("generate", "--model", fitted.folder / "final_model", *SHORT, stdin=question),
        cli("chat", fitted.folder, *SHORT, stdin=f"{question}\n/exit\n"),
    ]
    assert [answer.code for answer in answers] == [0, 0, 0]
    assert len({answer.out for answer in answers}) == 1
    assert answers[0].err == ""
    as_json = cli("generate", fitted.folder, "--prompt", question, "--json", *SHORT)
    assert json.loads(as_json.out) == {"prompt": question, "prediction": answers[0].out.removesuffix("\n")}


def test_generate_takes_checkpoints_and_several_prompts(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One?\nTwo?\n", encoding="utf-8")
    step = fitted.folder / "checkpoints" / "checkpoint-step-2"
    result = cli("generate", step, "--prompts", tmp_path / "p.txt", "--output", tmp_path / "o", *SHORT)
    assert result.code == 0, result.err
    assert [row["prompt"] for row in lines(tmp_path / "o" / "predictions.jsonl")] == ["One?", "Two?"]


def test_plugins_and_doctor(cli: Cli) -> None:
    listed = cli("plugins", "list", "--check")
    assert listed.code == 0
    assert "lightning-ft-methods" in listed.out
    assert "methods: adalora, bitfit, boft, freeze, ia3" in listed.out
    found = cli("doctor", "--json")
    assert found.code == 0, found.out
    assert {"cpu", "bf16", "embedded model"} & {line["what"] for line in json.loads(found.out)}


# ---- more runs --------------------------------------------------------------------------------------------------------


def test_config_yaml_runs_the_run_again_bit_for_bit(
    fitted: Fitted, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("fit", "--config", fitted.folder / "config.yaml", "--verdict_rows", "0")
    assert result.code == 0, result.err
    again = tmp_path / "runs" / "instruct_support_1"
    assert adapter_weights(again) == adapter_weights(fitted.folder)
    losses = [[row["loss"] for row in lines(f / "metrics.jsonl") if "loss" in row] for f in (again, fitted.folder)]
    assert losses[0] == losses[1]
    assert read(again / "run.json")["data"] == read(fitted.folder / "run.json")["data"]
    assert not (again / "verdict.json").exists()


def test_yaml_flags_and_preset_stack(fitted: Fitted, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        f"model: {fitted.model}\ndata: {fitted.data}\nmethod: {{name: lora, rank: 4}}\nmax_steps: 9\nprecision: fp32\n"
    )
    argv = (
        "fit",
        "--config",
        "quick_test",
        "--config",
        "run.yaml",
        "--max_steps",
        "1",
        "--method.alpha",
        "8",
        "--name",
        "mine",
    )
    result = cli(*argv, "--verdict_rows", "0", "--save_every", "0")
    assert result.code == 0, result.err
    values = yaml.safe_load((tmp_path / "runs" / "mine" / "config.yaml").read_text())
    assert (values["batch_size"], values["max_length"], values["max_steps"]) == (4, 256, 1)
    assert (values["method"]["rank"], values["method"]["alpha"]) == (4, 8)
    adapter = read(tmp_path / "runs" / "mine" / "final_model" / "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 8)
    assert not (tmp_path / "runs" / "mine" / "best_model").exists()


def test_training_goes_on_from_a_run(fitted: Fitted, cli: Cli, tmp_path: Path) -> None:
    """The tuned model is the new run's base: its first loss is where the old run's last validation was, not the base's."""
    argv = ("fit", fitted.folder, "--data", fitted.data, "--precision", "fp32", "--max_steps", "1", "--eval_every", "1")
    result = cli(*argv, "--learning_rate", "1e-9", "--seed", "3", "--verdict_rows", "0", "--output", tmp_path / "more")
    assert result.code == 0, result.err
    first = next(row["val_loss"] for row in lines(tmp_path / "more" / "metrics.jsonl") if "val_loss" in row)
    last = [row["val_loss"] for row in lines(fitted.folder / "metrics.jsonl") if "val_loss" in row][-1]
    assert first == pytest.approx(last, rel=1e-4)


def test_the_model_card_names_what_was_done(fitted: Fitted, models: dict[Family, Path]) -> None:
    card = (fitted.folder / "final_model" / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {models['llama']}" in card
    assert "| method | lora |" in card
    assert "AutoPeftModelForCausalLM" in card
