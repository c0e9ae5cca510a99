"""Training on pairs against thirty lines of plain torch: the answers of a pair stay together however a step is cut."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_ft
from lightning_ft.data.schedule import Schedule
from lightning_ft.engine.loss import token_logps
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.objective import Objective
from lightning_ft.types import Batch, Example, LossOutput, LossTerm, Preference

BETA, PEAK, EPOCHS, ROWS = 0.1, 1e-3, 2, 8


@dataclass(frozen=True)
class Pairwise(Objective):
    """Direct preference optimisation (Rafailov et al. 2023, equation 7), and how much better the better answer is."""

    name: ClassVar[str] = "pairwise"
    examples: ClassVar[tuple[type[Example], ...]] = (Preference,)
    reference: ClassVar[bool] = True
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"margin": "max"}

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """One term and one log, each counted in pairs."""
        assert batch.reference is not None
        ratios = (token_logps(model, batch) - batch.reference).view(-1, 2)
        margins = BETA * (ratios[:, 0] - ratios[:, 1])
        real = float(bool(batch.lengths))
        losses, count = -F.logsigmoid(margins).sum() * real, len(margins) * real
        return LossOutput(
            {"dpo": LossTerm(losses, count, per="rows")}, {"margin": LossTerm(margins.detach().sum() * real, count)}
        )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 pairs to train, 6 to validate, 2 to test; answers of very different lengths."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Count to {i}. " + "Please. " * (i % 4), "chosen": "one two " * (1 + i % 5) + str(i),
            "rejected": "no " * (1 + i * 7 % 20), "split": "train" if i < 29 else "validation" if i < 35 else "test",
        }
        for i in range(37)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def logps(model: Any, texts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    ids = nn.utils.rnn.pad_sequence([text[0] for text in texts], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([text[1] for text in texts], batch_first=True, padding_value=-100)
    logits = model(input_ids=ids).logits[:, :-1]
    return -F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(len(ids), -1).sum(1)


def encoded_by(backbone: Path, data: Path, split: str) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    found = []
    for row in map(json.loads, data.read_text().splitlines()):
        if row["split"] == split:
            pair = []
            for answer in (row["chosen"], row["rejected"]):
                turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
                one: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
                ids = torch.tensor(one["input_ids"])
                pair.append((ids, torch.where(torch.tensor(one["assistant_masks"]).bool(), ids, -100)))
            found.append(pair)
    return found


def margins_of(model: Any, pairs: list[list[tuple[torch.Tensor, torch.Tensor]]], reference: torch.Tensor) -> torch.Tensor:
    ratios = (logps(model, [text for pair in pairs for text in pair]) - reference.flatten()).view(-1, 2)
    return BETA * (ratios[:, 0] - ratios[:, 1])


def plain_loop(backbone: Path, data: Path, packed: bool) -> tuple[Any, list[tuple[float, float]], tuple[float, float]]:
    """The model, (loss, margin) of each step, and those of the validation after the last; the order is lightning-ft's."""
    train, held = encoded_by(backbone, data, "train"), encoded_by(backbone, data, "validation")
    model = AutoModelForCausalLM.from_pretrained(backbone)
    with torch.no_grad():
        before, before_held = (torch.stack([logps(model, pair) for pair in pairs]) for pairs in (train, held))
    texts = np.array([[len(text[0]) for text in pair] for pair in train])
    lengths = texts.sum(1) if packed else 2 * texts.max(1)
    plan = Schedule(lengths=lengths, supervised=lengths * 1.0, epochs=EPOCHS, batch_size=ROWS, packed=packed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)
    seen = []
    for step in plan:
        for group in optimizer.param_groups:
            group["lr"] = PEAK * (1 + math.cos(math.pi * step.number / plan.total_steps)) / 2
        rows = [i for micro in step.ranks[0] for i in micro]
        margins = margins_of(model, [train[i] for i in rows], before[rows])
        loss = -F.logsigmoid(margins).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        seen.append((float(loss.detach()), float(margins.detach().mean())))
    with torch.no_grad():
        margins = margins_of(model, held, before_held)
    return model, seen, (float(-F.logsigmoid(margins).mean()), float(margins.mean()))


def options(environment: Any, monkeypatch: pytest.MonkeyPatch, **further: Any) -> dict[str, Any]:
    monkeypatch.setenv("LIGHTNING_FT_CACHE", environment["LIGHTNING_FT_CACHE"])
    given: dict[str, Any] = {
        "method": "full", "task": "preference", "objective": Pairwise(), "precision": "fp32", "epochs": EPOCHS,
        "batch_size": ROWS // 4, "accumulate": 4, "learning_rate": PEAK, "weight_decay": 0.0, "max_grad_norm": 0.0,
        "warmup": 0, "log_every": 1, "eval_every": 4, "verdict_rows": 0,
    }  # fmt: skip
    return given | further


@pytest.mark.parametrize("packing", ["off", "on"])
def test_training_on_pairs_is_a_plain_loop(
    of_run: Any, plain_backbone: Path, pairs: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    packing: str,
) -> None:  # fmt: skip
    lightning_ft.fit(
        model=str(plain_backbone), data=str(pairs), output=str(tmp_path / "run"), packing=packing,
        **options(environment, monkeypatch),
    )  # fmt: skip
    model, seen, (val_loss, val_margin) = plain_loop(plain_backbone, pairs, packed=packing == "on")
    lines = of_run.lines(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == len(seen) == 8
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert seen[-1][1] > 0.5
    for line, (loss, margin) in zip(steps, seen, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-4)
        assert line["margin"] == pytest.approx(margin, rel=1e-3, abs=1e-4)
    last = [line for line in lines if "val_loss" in line][-1]
    assert last["val_loss"] == pytest.approx(val_loss, rel=1e-4)
    assert last["val_margin"] == pytest.approx(val_margin, rel=1e-3)
    assert "val_token_accuracy" not in last
    trained = of_run.weights(tmp_path / "run")
    for name, p in model.named_parameters():
        torch.testing.assert_close(trained[name], p.detach(), rtol=0, atol=1e-4)


def test_an_adapter_is_compared_with_its_base(
    of_run: Any, plain_backbone: Path, pairs: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    lightning_ft.fit(
        model=str(plain_backbone), data=str(pairs), output=str(folder),
        **options(environment, monkeypatch, method={"name": "lora", "dropout": 0.5}, monitor="val_margin", keep_best=1),
    )  # fmt: skip
    kept = load_file(folder / "reference.safetensors")
    model = AutoModelForCausalLM.from_pretrained(plain_backbone)
    with torch.no_grad():
        for split in ("train", "validation"):
            expected = torch.stack([logps(model, pair) for pair in encoded_by(plain_backbone, pairs, split)])
            torch.testing.assert_close(kept[split], expected, rtol=1e-5, atol=1e-4)
    margins = {line["step"]: line["val_margin"] for line in of_run.lines(folder) if "val_margin" in line}
    assert json.loads((folder / "run.json").read_text())["best_step"] == max(margins, key=lambda step: margins[step])


def test_what_the_reference_was_is_kept_for_a_run_that_goes_on(
    of_run: Any, plain_backbone: Path, pairs: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are made by a worker, and the run ends between two lines of the log."""
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    given = options(environment, monkeypatch, workers=1, log_every=3)
    lightning_ft.fit(model=str(plain_backbone), data=str(pairs), output=str(whole), **given)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:  # the step before was validated and saved
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        lightning_ft.fit(
            model=str(plain_backbone), data=str(pairs), output=str(halted), trainer={"callbacks": [Stop()]}, **given
        )
    file = halted / "reference.safetensors"
    reference = file.read_bytes()
    for broken in (None, b"half", save({"train": torch.zeros(3, 2)})):
        file.unlink(missing_ok=True) if broken is None else file.write_bytes(broken)
        with pytest.raises(TrainingError, match=r"expected what the model made of .* before training, got"):
            lightning_ft.fit(model=str(plain_backbone), data=str(pairs), resume=str(halted), trainer={}, **given)
    file.write_bytes(reference)
    lightning_ft.fit(model=str(plain_backbone), data=str(pairs), resume=str(halted), trainer={}, **given)
    assert file.read_bytes() == reference
    lines, again = of_run.lines(whole), of_run.lines(halted)
    assert [line["step"] for line in lines if "margin" in line] == [3, 6, 8]
    assert again == lines
    for name, value in of_run.weights(whole).items():
        assert torch.equal(of_run.weights(halted)[name], value), name


def test_rows_that_no_step_has_are_not_computed(
    plain_backbone: Path, pairs: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(environment, monkeypatch, max_steps=2, preflight=False)
    lightning_ft.fit(model=str(plain_backbone), data=str(pairs), output=str(tmp_path / "run"), **given)
    kept = load_file(tmp_path / "run" / "reference.safetensors")
    assert kept["train"].isnan().any(1).sum() == 29 - 2 * ROWS
    assert not kept["validation"].isnan().any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"monitor": "val_margn"}, r"what a validation measures \(val_loss, val_margin.*Did you mean 'val_margin'"),
        ({"monitor": "val_token_accuracy"}, r"what a validation measures \(val_loss, val_margin"),
        (
            {"packing": "off", "batch_tokens": 100},
            r"at least \d+, the tokens of the longest row .* cut texts with --max_length 50",
        ),
        ({"label_smoothing": 0.1}, "got pairwise, which does not; leave --label_smoothing out"),
    ],
)
def test_what_does_not_fit_pairs_is_refused(
    plain_backbone: Path, pairs: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any], said: str,
) -> None:  # fmt: skip
    given = options(environment, monkeypatch) | wrong
    if "batch_tokens" in wrong:
        del given["batch_size"]
    with pytest.raises(UsageError, match=said):
        lightning_ft.fit(model=str(plain_backbone), data=str(pairs), output=str(tmp_path / "run"), **given)
    assert not (tmp_path / "run").exists()


def test_a_stream_has_no_reference(plain_backbone: Path, pairs: Path) -> None:
    with pytest.raises(UsageError, match="Expected no --stream with --objective pairwise"):
        lightning_ft.fit(model=str(plain_backbone), data=str(pairs), objective=Pairwise(), stream=10, max_steps=2)
