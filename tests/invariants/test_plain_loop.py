"""The whole of lightning-ft against forty lines of plain torch: same losses, gradient norms, rates and weights."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_ft
from lightning_ft.data.schedule import Schedule

PEAK, DECAY, CLIP, EPOCHS, ROWS, WARM = 3e-4, 0.1, 1.0, 2, 8, 2
EPS = 1e-3
"""So large that Adam makes no large step of a gradient that is rounding, which differs between processors."""


def plain_loop(backbone: Path, data: Path, packed: bool) -> tuple[torch.nn.Module, list[tuple[float, float, float]]]:
    """The model, and (loss, gradient norm, learning rate) of each step; only the order of rows is lightning-ft's."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    given: list[dict[str, Any]] = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [row for row in given if row["split"] == "train"]
    encoded = []
    for row in rows:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        found: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids = torch.tensor(found["input_ids"])
        encoded.append((ids, torch.where(torch.tensor(found["assistant_masks"]).bool(), ids, -100)))
    lengths = np.array([len(ids) for ids, _ in encoded])
    plan = Schedule(lengths=lengths, supervised=lengths * 1.0, epochs=EPOCHS, batch_size=ROWS, packed=packed)
    order = [[i for micro in step.ranks[0] for i in micro] for step in plan]

    model = AutoModelForCausalLM.from_pretrained(backbone).train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, eps=EPS)
    seen = []
    for number, indices in enumerate(order):
        if number < WARM:
            rate = PEAK * (number + 1) / (WARM + 1)
        else:
            rate = PEAK * (1 + math.cos(math.pi * (number - WARM) / (len(order) - WARM))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.nn.utils.rnn.pad_sequence([encoded[i][0] for i in indices], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence([encoded[i][1] for i in indices], batch_first=True, padding_value=-100)
        logits = model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        seen.append((float(loss.detach()), float(norm), rate))
    return model, seen


@pytest.mark.parametrize("packing", ["off", "on"])
def test_training_is_a_plain_loop(
    of_run: Any, plain_backbone: Path, uneven: Path, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    packing: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("LIGHTNING_FT_CACHE", environment["LIGHTNING_FT_CACHE"])
    lightning_ft.fit(
        model=str(plain_backbone), data=str(uneven), output=str(tmp_path / "run"), method="full", precision="fp32",
        epochs=EPOCHS, batch_size=ROWS // 4, accumulate=4, packing=packing, learning_rate=PEAK, weight_decay=DECAY,
        max_grad_norm=CLIP, warmup=WARM, optimizer={"name": "AdamW", "eps": EPS}, log_every=1, eval_every=4, verdict_rows=0,
    )  # fmt: skip
    model, seen = plain_loop(plain_backbone, uneven, packed=packing == "on")
    lines = [line for line in of_run.lines(tmp_path / "run") if "loss" in line]
    assert len(lines) == len(seen) == 12
    for line, (loss, norm, rate) in zip(lines, seen, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert line["learning_rate"] == pytest.approx(rate)
    trained = of_run.weights(tmp_path / "run")
    for name, p in model.named_parameters():
        torch.testing.assert_close(trained[name], p.detach(), rtol=0, atol=1e-6)
