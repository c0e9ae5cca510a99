"""Whatever a run saves loads with peft and transformers alone, computes what the trained model did, and renders so too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lightning_ft
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template
from lightning_ft.types import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lightning_ft.testing.models import Family

CASES: dict[str, tuple[Family, str, str]] = {
    "llama-lora": ("llama", "lora", "auto"),
    "llama-freeze": ("llama", "freeze", "alpaca"),
    "llama-full": ("llama", "full", "tags"),
    "gpt2-lora": ("gpt2", "lora", "alpaca"),
    "gpt2-freeze": ("gpt2", "freeze", "tags"),
    "gpt2-full": ("gpt2", "full", "auto"),
}
"""Every method of the first three on both families, and every kind of template."""
INPUT = [[257, 40, 41, 42, 90, 91, 258, 33], [7, 7, 7, 65, 66, 67, 68, 69]]
"""Two rows of token ids."""
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is order 4?"},
    {"role": "assistant", "content": "In city 4."},
    {"role": "user", "content": "  And \u00fcmlaut <s> 5?\n"},
    {"role": "assistant", "content": "In city 5."},
]
STRANGER = """
import json, sys
from pathlib import Path

for name in ("lightning_ft", "lightning_ft_methods", "lightning_ft_tasks", "lightning"):
    sys.modules[name] = None  # importing it raises ImportError

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

folders, rows, turns, target = json.loads(sys.argv[1])
out = {}
for name in folders:
    adapter = (Path(name) / "adapter_config.json").is_file()
    model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    with torch.no_grad():
        logits = model.eval()(torch.tensor(rows)).logits
    ids = [tokenizer.apply_chat_template(turns[:n], tokenize=True, return_dict=False) for n in (3, 5)]
    prompt = tokenizer.apply_chat_template(turns[:4], tokenize=False, add_generation_prompt=True)
    out[name] = {"logits": logits, "ids": ids, "prompt": prompt, "pad": tokenizer.pad_token, "dtype": str(model.dtype)}
torch.save(out, target)
"""


@dataclass
class Trained:
    """A finished run, and what its model said before it was let go."""

    folder: Path
    logits: torch.Tensor


@dataclass
class Reloaded:
    """All runs, and all that a process without our code found in their folders."""

    runs: Mapping[str, Trained]
    short: Path
    """The run of `llama-lora`, stopped after two steps."""
    found: Mapping[str, dict[str, Any]]
    """By folder."""


def train(model: Path, data: Path, folder: Path, method: str, template: str, steps: int) -> Trained:
    run = lightning_ft.fit(
        model=str(model), data=str(data), method=method, template=template, output=str(folder), precision="fp32",
        max_steps=steps, eval_every=2, keep_best=9, batch_size=4, learning_rate=1e-2, lr_scheduler="constant", warmup=0,
        verdict_rows=0, preflight=False,
    )  # fmt: skip
    loaded = run._loaded  # the model as it left training, not one that was loaded again
    assert loaded is not None
    with torch.no_grad():
        logits = loaded.model.eval()(torch.tensor(INPUT, device=loaded.model.device)).logits.float().cpu()
    return Trained(run.folder, logits)


def folders_of(run: Path) -> list[Path]:
    return [run / "final_model", run / "best_model", *sorted((run / "checkpoints").iterdir())]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory, models: dict[Family, Path], data: Path, own_cache: Path) -> Reloaded:
    """Six runs, and one process that loads all their folders with nothing of ours in it."""
    place = tmp_path_factory.mktemp("reload")
    runs = {
        name: train(models[family], data, place / name, method, template, 4)
        for name, (family, method, template) in CASES.items()
    }
    short = train(models["llama"], data, place / "short", "lora", "auto", 2)
    folders = [str(folder) for run in runs.values() for folder in folders_of(run.folder)]
    (place / "stranger.py").write_text(STRANGER)
    facts = json.dumps([[*folders, str(short.folder / "final_model")], INPUT, TURNS, str(place / "found.pt")])
    done = subprocess.run(
        [sys.executable, "stranger.py", facts], cwd=place, env=dict(os.environ), capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Reloaded(runs, short.folder, torch.load(place / "found.pt"))


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_last_model_computes_what_the_trained_one_did(reloaded: Reloaded, case: str) -> None:
    run = reloaded.runs[case]
    for folder in (run.folder / "final_model", run.folder / "checkpoints" / "checkpoint-step-4"):
        found = reloaded.found[str(folder)]
        assert found["dtype"] == "torch.float32"
        torch.testing.assert_close(found["logits"], run.logits)


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_differ_and_the_best_is_the_best(reloaded: Reloaded, case: str) -> None:
    run = reloaded.runs[case].folder
    first, last = (reloaded.found[str(run / "checkpoints" / f"checkpoint-step-{n}")]["logits"] for n in (2, 4))
    assert (first - last).abs().max() > 1e-3
    best = reloaded.found[str(run / "best_model")]["logits"]
    step = record(run)["best_step"]
    assert torch.equal(best, reloaded.found[str(run / "checkpoints" / f"checkpoint-step-{step}")]["logits"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert losses[step] == min(losses.values())


def test_a_checkpoint_is_the_model_of_its_step(reloaded: Reloaded) -> None:
    """A run of two steps ends where a run of four steps saved its second."""
    step = reloaded.found[str(reloaded.runs["llama-lora"].folder / "checkpoints" / "checkpoint-step-2")]
    torch.testing.assert_close(reloaded.found[str(reloaded.short / "final_model")]["logits"], step["logits"])


@pytest.mark.parametrize("case", CASES)
def test_serving_text_is_training_text(reloaded: Reloaded, case: str) -> None:
    """The saved folder's tokenizer renders and tokenises a conversation to the ids that training uses, everywhere."""
    from lightning_ft.testing.models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    template = Template.resolve(CASES[case][2], tokenizer)
    encoder = Encoder(tokenizer, template, 256)
    messages = tuple(Message(turn["role"], turn["content"]) for turn in TURNS)
    trained = [encoder.encode([Conversation(messages[:n])], ["here:1"])[0].input_ids for n in (3, 5)]
    for folder in folders_of(reloaded.runs[case].folder):
        found = reloaded.found[str(folder)]
        assert found["prompt"] == template.prompt(messages[:4])
        assert found["pad"] == tokenizer.pad_token
        # A template may write a line end after the last stop token; the ids up to there are the same.
        for ours, theirs in zip(trained, found["ids"], strict=True):
            assert theirs[: len(ours)] == ours
            assert str(tokenizer.decode(theirs[len(ours) :])).strip() == ""


@pytest.mark.parametrize("case", [name for name, (_, method, _) in CASES.items() if method == "freeze"])
def test_frozen_layers_are_saved_as_they_were(reloaded: Reloaded, models: dict[Family, Path], case: str) -> None:
    from safetensors.torch import load_file

    before = load_file(models[CASES[case][0]] / "model.safetensors")
    after = load_file(reloaded.runs[case].folder / "final_model" / "model.safetensors")
    same = {name for name, value in before.items() if name in after and torch.equal(value, after[name])}
    lower = {name for name in before if ".layers.0." in name or ".h.0." in name}
    upper = {name for name in before if ".layers.1." in name or ".h.1." in name}
    assert lower
    assert lower <= same
    assert not upper & {name for name in same if name.endswith("weight") and before[name].ndim == 2}
