"""The operations that a token needs, counted by hand, and the rate that they are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from lightning_ft.registry import registry
from lightning_ft.run.utilisation import Work, product_rate
from lightning_ft.testing.models import tiny_model

if TYPE_CHECKING:
    from lightning_ft.testing.models import Family
    from tests.conftest import TinyFit

VOCABULARY = tiny_model("llama").config.vocab_size
LLAMA = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32)  # two layers: q, k and v, o, gate and up and down
GPT2 = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)  # two layers: q with k and v, o, up and down


@pytest.mark.parametrize(("family", "body"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_of_all_weights(family: Family, body: int) -> None:
    model = registry().methods["full"].cls().attach(tiny_model(family), 1)
    work = Work.of(model)
    assert (work.everywhere, work.supervised) == (6 * body, 6 * VOCABULARY * 32)
    assert work(10, 3) == 60 * body + 18 * VOCABULARY * 32


def test_of_an_adapter_on_frozen_weights() -> None:
    model = registry().methods["lora"].cls(rank=4, target_modules=["q_proj", "down_proj"]).attach(tiny_model("llama"), 1)
    adapters = 2 * 4 * ((32 + 32) + (64 + 32))
    work = Work.of(model)
    assert (work.everywhere, work.supervised) == (4 * LLAMA + 6 * adapters, 4 * VOCABULARY * 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_leaves_the_weights_alone(dtype: torch.dtype) -> None:
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert product_rate(model, 64, dtype, torch.device("cpu")) > 1e6
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert product_rate(torch.nn.LayerNorm(4), 64, dtype, torch.device("cpu")) == 0.0


@pytest.mark.parametrize("packing", ["on", "off"])
def test_the_log_counts_what_the_batches_hold(packing: str, tiny_fit: TinyFit) -> None:
    """Counted again from ids and labels: a padded cell is the pad token, a supervised one has a label behind the first."""
    from lightning_ft.testing.models import tiny_tokenizer
    from lightning_ft.types import IGNORE_INDEX

    seen = tiny_fit(log_every=1, packing=packing, batch_tokens=256, epochs=1, max_steps=None)
    lines = [line for line in seen.run.metrics if "loss" in line]
    assert len(lines) == len(seen.batches) > 1
    shares = set()
    for line, step in zip(lines, seen.batches, strict=True):
        cells = sum(batch.input_ids.numel() for batch in step.micro)
        tokens = sum(int((batch.input_ids != tiny_tokenizer().pad_token_id).sum()) for batch in step.micro)
        supervised = sum(int((batch.labels[:, 1:] != IGNORE_INDEX).sum()) for batch in step.micro)
        assert line["padding_share"] == pytest.approx(1 - tokens / cells, abs=1e-4)
        assert line["supervised_tokens_per_second"] / line["tokens_per_second"] == pytest.approx(supervised / tokens, rel=1e-2)
        shares.add(line["padding_share"])
    assert max(shares) > 0
