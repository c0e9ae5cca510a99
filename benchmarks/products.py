"""The matrix products of a setting's model: the work that its rows need, and how fast this machine does such products.

`python -m benchmarks.products SETTING OUT` measures the second, the contestant `gemm`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Product:
    """A linear layer of a Llama shape."""

    in_features: int
    out_features: int
    count: int
    """How many of the model's layers are of this kind."""
    head: bool = False
    """Whether it is the output head, which only supervised positions need."""


def products(options: dict[str, Any]) -> list[Product]:
    """All of them, by the setting's `shape` and `vocab_size`."""
    shape = options["shape"]
    hidden, layers, wide = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return [
        Product(hidden, hidden, 2 * layers),  # queries and output
        Product(hidden, keys, 2 * layers),
        Product(hidden, wide, 2 * layers),  # gate and up
        Product(wide, hidden, layers),
        Product(hidden, options["vocab_size"], 1, head=True),
    ]


def needed_flops(options: dict[str, Any]) -> float:
    """Floating point operations that one pass over the training rows needs.

    Of a weight and a token 2 in the forward pass, 2 for the gradient of the inputs and 2 for that of the weight, the last
    only where it trains: 4 N + 6 N_lora for LoRA, 6 N for full fine-tuning. The head counts at supervised positions only.
    Pairs need a forward pass more, the reference's, 2 N. Attention and what somebody computes twice are not counted.
    """
    full = options.get("method") == "full"
    of_weight = (6.0 if full else 4.0) + (2.0 if options.get("pairs") else 0.0)
    flops = 0.0
    for product in products(options):
        tokens = options["train_supervised_tokens" if product.head else "train_tokens"]
        flops += of_weight * product.in_features * product.out_features * product.count * tokens
        if not (full or product.head):
            flops += 6.0 * options["rank"] * (product.in_features + product.out_features) * product.count * tokens
    return flops


def rates(options: dict[str, Any], batches: list[tuple[int, int]], dtype: torch.dtype) -> dict[str, float]:
    """Operations per second of the products alone, over the batches of one epoch.

    Every layer has a weight of its own, as in the model, so that none stays in the cache; nothing is allocated while the
    clock runs.

    Args:
        options: of the setting.
        batches: (tokens, supervised tokens) of each.
        dtype: in which the run computes.

    Returns:
        `flops_per_s` of all, and the rates of the forward pass, of the gradients of the inputs and, in full fine-tuning, of
        the gradients of the weights.
    """
    kinds = ("forward", "inputs", "weights") if options.get("method") == "full" else ("forward", "inputs")
    seconds, flops = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for product in products(options):
        counts = [supervised if product.head else tokens for tokens, supervised in batches]
        operands = Operands.of(product, max(counts), dtype)
        for kind in kinds:
            for count in counts:
                seconds[kind] += operands.seconds(kind, count)
                flops[kind] += 2.0 * count * product.in_features * product.out_features * product.count
    found = {f"{kind}_flops_per_s": flops[kind] / seconds[kind] for kind in kinds}
    return {"flops_per_s": sum(flops.values()) / sum(seconds.values()), **found}


@dataclass(frozen=True)
class Operands:
    """What is multiplied, for at most T positions, and where it is written."""

    inputs: torch.Tensor
    """(T, in_features)"""
    gradients: torch.Tensor
    """(T, out_features), of the outputs."""
    weights: list[torch.Tensor]
    """(out_features, in_features) each."""
    results: dict[str, torch.Tensor]

    @classmethod
    def of(cls, product: Product, most: int, dtype: torch.dtype) -> Operands:
        """Random numbers for at most so many positions."""
        import torch

        inputs, gradients = (torch.randn(most, size).to(dtype) for size in (product.in_features, product.out_features))
        weights = [torch.randn(product.out_features, product.in_features).to(dtype) for _ in range(product.count)]
        kinds = {"forward": gradients, "inputs": inputs, "weights": weights[0]}
        return cls(inputs, gradients, weights, {kind: torch.zeros_like(like) for kind, like in kinds.items()})

    def seconds(self, kind: str, count: int) -> float:
        """What the products of one kind take with all the weights, for so many positions."""
        self._multiply(kind, count, self.weights[0])  # oneDNN makes a kernel for each new shape
        began = time.perf_counter()
        for weight in self.weights:
            self._multiply(kind, count, weight)
        return time.perf_counter() - began

    def _multiply(self, kind: str, count: int, weight: torch.Tensor) -> None:
        import torch

        inputs, gradients, result = self.inputs[:count], self.gradients[:count], self.results[kind]
        if kind == "forward":
            torch.mm(inputs, weight.t(), out=result[:count])
        elif kind == "inputs":
            torch.mm(gradients, weight, out=result[:count])
        else:
            torch.mm(gradients.t(), inputs, out=result)


def main() -> None:
    """Measure and write `measure.json`: batches are those of a run that sorts rows by length, without padding."""
    import torch
    from transformers import AutoTokenizer

    from benchmarks.baselines.plain_torch import buckets
    from benchmarks.baselines.trained import low
    from benchmarks.setting import IGNORE_INDEX, Setting

    setting, folder = Setting.load(sys.argv[1]), Path(sys.argv[2])
    options = setting.options
    batches = [
        (sum(len(row["labels"]) for row in rows), sum(label != IGNORE_INDEX for row in rows for label in row["labels"]))
        for rows in buckets(setting.encoded("train", AutoTokenizer.from_pretrained(setting.model)), options["batch_size"], 0)
    ]
    found = rates(options, batches, torch.bfloat16 if low(options) else torch.float32)
    (folder / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
