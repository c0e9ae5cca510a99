"""A loop in plain torch, as a careful user would write it: batches of rows of like length, bf16 autocast, full logits.

Frozen weights are bf16, those that train float32; without fast bfloat16 all is float32.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trained import low, trained_model
from benchmarks.setting import IGNORE_INDEX, Encoded, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


def buckets(rows: list[Encoded], size: int, seed: int) -> list[list[Encoded]]:
    """Batches of rows sorted by length, the batches in random order."""
    return batches_of(rows, lambda row: len(row["input_ids"]), size, seed)


def batches_of(rows: list[R], length: Callable[[R], int], size: int, seed: int) -> list[list[R]]:
    """Batches of any rows sorted by their length, the batches in random order."""
    ordered = sorted(rows, key=length)
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    random.Random(seed).shuffle(batches)
    return batches


def collate(rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
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
    rows = buckets(setting.encoded("train", tokenizer), options["batch_size"], options["seed"])
    model = trained_model(setting)
    batches = [collate(batch, tokenizer.pad_token_id) for batch in rows]
    descend(model, batches, lambda batch: model(**batch).loss, options)
    return model


def descend(model: Any, batches: list[R], loss_of: Callable[[R], Any], options: dict[str, Any]) -> None:
    """A step of AdamW on each batch's loss, under bf16 autocast, with a rate that falls linearly to zero."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["learning_rate"], weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low(options)):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    setting, folder = arguments()
    train(setting).save_pretrained(folder / "trained")
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
