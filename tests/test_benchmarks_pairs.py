"""The suite of preference pairs: the same texts for everybody, a clock that counts the reference, and one scorer."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.baselines.measure import Clock
from benchmarks.products import needed_flops
from benchmarks.run import HERE, Suite
from benchmarks.setting import IGNORE_INDEX, Setting, build, read_pairs
from tests.test_benchmarks import SMALL, changed, measure


@pytest.fixture(scope="module")
def pairs_setting(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    options = dict(Suite.load("preference").setting or {})
    # A rate at which a model of one narrow layer learns something in three steps.
    options |= {"shape": SMALL, "vocab_size": 1024, "train_rows": 24, "heldout_rows": 6, "learning_rate": 1e-2}
    return build(options, shared_data, tmp_path_factory.mktemp("setting"))


def scored(setting: Setting, *trained: str) -> dict[str, float]:
    """What the scorer says."""
    command = [sys.executable, "-m", "benchmarks.score", str(setting.folder), *trained]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_ours_is_held_against_every_setting_of_the_peer() -> None:
    suite = Suite.load("preference")
    peers = {name for name, spec in suite.contestants.items() if "venv" in spec}
    for metric in ("examples_per_s", "peak_mb", "heldout_dpo_loss"):
        assert {t["over"] for t in suite.targets if (t["of"], t["metric"]) == ("ours", metric)} >= peers


def test_texts_are_the_same_tokens_for_everybody(pairs_setting: Setting) -> None:
    from transformers import AutoTokenizer

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.registry import registry

    tokenizer = AutoTokenizer.from_pretrained(pairs_setting.model)
    task = registry().tasks["preference"].cls()
    examples = [task.format(line) for line in pairs_setting.lines("train")]
    pairs = pairs_setting.encoded_pairs("train", tokenizer)
    assert len(examples) == len(pairs) == 24
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), 512)
    for pair, ours in zip(pairs, encoder.encode(examples, [str(i) for i in range(24)]), strict=True):
        assert [{"input_ids": text.input_ids, "labels": text.labels} for text in ours.texts()] == list(pair)
        chosen, rejected = pair
        prompt = chosen["labels"].count(IGNORE_INDEX)
        assert chosen["input_ids"][:prompt] == rejected["input_ids"][:prompt]
        assert chosen["input_ids"] != rejected["input_ids"]
    assert pairs_setting.options["train_tokens"] == sum(len(text["input_ids"]) for pair in pairs for text in pair)


def test_a_pair_counts_if_both_texts_fit_and_differ(shared_data: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Greet.", "input": "", "chosen": "Good day.", "rejected": "Hm."},
        {"instruction": "Greet.", "input": "", "chosen": "Good day.", "rejected": "Good day. "},
        {"instruction": "Greet.", "input": "", "chosen": "Good day.", "rejected": "well " * 100},
        {"instruction": "Greet.", "input": "Ann", "chosen": "Hello, Ann.", "rejected": "What?"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert len(list(read_pairs(tmp_path / "rows.json"))) == 3
    options = dict(Suite.load("preference").setting or {})
    options |= {
        "shape": SMALL, "vocab_size": 1024, "train_rows": 1, "heldout_rows": 1, "max_length": 60,
        "tokenizer": str(shared_data / options["tokenizer"]), "data": "rows.json",
    }  # fmt: skip
    setting = build(options, tmp_path, tmp_path / "setting")
    found = [line["rejected"][0]["content"] for part in ("train", "heldout") for line in setting.lines(part)]
    assert sorted(found) == ["Hm.", "What?"]
    with pytest.raises(ValueError, match="Expected 3 rows of at most 60 tokens"):
        build({**options, "train_rows": 2}, tmp_path, tmp_path / "more")


def test_the_clock_of_pairs_begins_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes at known times, by hand: the first without gradients."""
    options = {
        "shape": SMALL, "vocab_size": 10, "rank": 1, "train_rows": 2, "batch_size": 2, "train_tokens": 8,
        "train_supervised_tokens": 4,
    }  # fmt: skip
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)  # the clock's own is gone behind the test
    clock, layer = Clock(), torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer(torch.ones(1, 2))
    assert clock.first is not None
    assert clock.begin is None
    loss, other = layer(torch.ones(1, 2)).sum(), layer(torch.zeros(1, 2)).sum()
    loss.backward()
    other.backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert clock.begin is not None
    assert clock.first < clock.begin < clock.ends[0]
    of_pairs, of_rows = (clock.values(Setting(Path(), {**options, **more})) for more in ({"pairs": True}, {}))
    assert of_pairs["examples_per_s"] == 2 / (clock.ends[0] - clock.first)
    assert of_rows["final_loss"] == float((loss + other).detach())
    assert of_rows["examples_per_s"] == 2 / (clock.ends[0] - clock.begin)


def test_pairs_need_a_forward_pass_more() -> None:
    """The layer of `test_needed_work_is_that_of_the_formula`: 6 (136 * 7 + 40 * 3) + 6 * 62 * 7 = 9036 for LoRA."""
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    options = {"shape": {**shape, "intermediate_size": 6}, "vocab_size": 10, "train_tokens": 7, "train_supervised_tokens": 3}
    assert needed_flops({**options, "rank": 1, "pairs": True}) == 9036


def test_nothing_learned_is_log_2_and_even(pairs_setting: Setting) -> None:
    found = scored(pairs_setting)
    assert found == {"heldout_dpo_loss": pytest.approx(math.log(2), abs=1e-6), "heldout_accuracy": 0.5}


@pytest.mark.parametrize("module", ["benchmarks.ours", "benchmarks.baselines.plain_torch_dpo"])
def test_contestant_learns_from_pairs_and_is_scored_by_the_formula(module: str, pairs_setting: Setting, tmp_path: Path) -> None:
    measured = measure(tmp_path, module, str(pairs_setting.folder), str(tmp_path))
    assert measured["steps"] == 3
    assert measured["examples_per_s"] > 0
    assert changed(measured["trained"], pairs_setting.model)
    margins = margins_of(pairs_setting, measured["trained"])
    found = scored(pairs_setting, measured["trained"])
    assert found["heldout_dpo_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 6, rel=1e-4)
    assert found["heldout_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 6)
    assert abs(found["heldout_dpo_loss"] - math.log(2)) > 1e-3


def margins_of(setting: Setting, trained: str) -> list[float]:
    """beta h of each held-out pair, by the softmax of the merged model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    base, policy = (AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float64) for _ in range(2))
    merged: Any = PeftModel.from_pretrained(policy, trained).merge_and_unload()

    def gained(text: dict[str, list[int]]) -> float:
        ids = torch.tensor([text["input_ids"]])
        prompt = text["labels"].count(IGNORE_INDEX)
        of = [
            model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[prompt - 1 :].sum()
            for model in (merged, base)
        ]
        return float(of[0] - of[1])

    with torch.no_grad():
        pairs = setting.encoded_pairs("heldout", tokenizer)
        return [setting.options["beta"] * (gained(chosen) - gained(rejected)) for chosen, rejected in pairs]
