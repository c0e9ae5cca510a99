"""A loop in plain torch, as a careful user would write it: batches of rows of like length, bf16 autocast, full logits.

Frozen weights are bf16, those that train float32.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trained import trained_model
from benchmarks.setting import IGNORE_INDEX, Setting


def buckets(rows: list[dict[str, list[int]]], size: int, seed: int) -> list[list[dict[str, list[int]]]]:
    """Batches of rows sorted by length, the batches in random order."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    random.Random(seed).shuffle(batches)
    return batches


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", IGNORE_INDEX), "attention_mask": mask}


def train(setting: Setting) -> Any:
    """The model behind one epoch."""
    from transformers import AutoTokenizer

    options = setting.options
    torch.manual_seed(options["seed"])
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    batches = buckets(setting.encoded("train", tokenizer), options["batch_size"], options["seed"])
    model = trained_model(setting)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["learning_rate"], weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for rows in batches:
        batch = collate(rows, tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    setting, folder = arguments()
    train(setting).save_pretrained(folder / "trained")
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
