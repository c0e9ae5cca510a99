"""Runs that must be equal: rows packed, rows padded, and rows one by one, in loss and gradient, row by row."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from lightning_ft.engine.attention import packs_documents
from lightning_ft.engine.loss import score_rows, token_logps, token_loss
from lightning_ft.engine.packing import check_packing
from lightning_ft.types import IGNORE_INDEX, Batch

# peft asks transformers whether layers are checkpointed by a name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
VOCAB = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**BASE),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gemma2": lambda: tf.Gemma2Config(
        **BASE, **EAGER, head_dim=8, sliding_window=4, attn_logit_softcapping=0.5, final_logit_softcapping=0.5
    ),
}
# transformers' eager attention, which capped scores need, takes its softmax in float32, whose rounding differs with the shape;
# ours takes it in float64.
CLOSE: dict[str, dict[str, Any]] = {"gemma2": {"rtol": 1e-4, "atol": 1e-5}}

Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Ids, labels and weights."""


def make(family: str, adapter: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    config = FAMILIES[family]()
    plain = tf.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        config, attn_implementation=config._attn_implementation
    )
    model: torch.nn.Module = plain.double().train()
    if adapter:
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, options, autocast_adapter_dtype=False).double()
    return model


def rows_of(vocab: int, lengths: Sequence[int] = (9, 4, 13, 2, 6), seed: int = 0) -> list[Row]:
    """Every row has a prompt, and one row no target at all."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, vocab, (length,), generator=draw)
        labels = ids.clone()
        labels[: length if number == 3 else number] = IGNORE_INDEX
        rows.append((ids, labels, torch.rand(length, generator=draw) + 0.5))
    return rows


def pad(rows: Sequence[Row]) -> Batch:
    ids, labels, weights = (
        torch.nn.utils.rnn.pad_sequence([row[n] for row in rows], True, fill) for n, fill in enumerate((0, IGNORE_INDEX, 0))
    )
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    lengths = tuple(len(row[0]) for row in rows)
    return Batch(ids, labels, positions, None, tuple(map(str, lengths)), weights=weights, lengths=lengths)


def pack(rows: Sequence[Row]) -> Batch:
    ids, labels, weights = (torch.cat([row[n] for row in rows])[None] for n in range(3))
    lengths = tuple(len(row[0]) for row in rows)
    borders = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return Batch(ids, labels, positions, borders, tuple(map(str, lengths)), weights=weights, lengths=lengths)


def loss_and_gradients(
    model: torch.nn.Module, batches: Sequence[Batch]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor | None]]:
    model.zero_grad(set_to_none=True)
    losses, totals = zip(*(token_loss(model, batch) for batch in batches), strict=True)
    loss = torch.stack(losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach(), torch.stack(totals).sum(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_equals_one_by_one(family: str, adapter: bool) -> None:
    model, rows = make(family, adapter), rows_of(VOCAB)
    alone = [pad([row]) for row in rows]
    expected = loss_and_gradients(model, alone)
    for batches in ([pad(rows)], [pack(rows)], [pack(rows[:2]), pad(rows[2:])]):
        torch.testing.assert_close(loss_and_gradients(model, batches), expected, **CLOSE.get(family, {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_scores_the_same(family: str) -> None:
    model, rows = make(family, False), rows_of(VOCAB)
    alone = [score_rows(model, pad([row]))[0] for row in rows]
    assert alone[3] == (0.0, 0, 0)
    for batch in (pad(rows), pack(rows)):
        for found, expected in zip(score_rows(model, batch), alone, strict=True):
            assert found[1:] == expected[1:]
            assert found[0] == pytest.approx(expected[0], rel=CLOSE.get(family, {"rtol": 1e-9})["rtol"])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_has_the_same_gradient(family: str) -> None:
    model, rows = make(family, False), rows_of(VOCAB)
    trained = [p for p in model.parameters() if p.requires_grad]
    for number, row in enumerate(rows):
        expected = torch.autograd.grad(token_logps(model, pad([row]))[0], trained)
        for batch in (pad(rows), pack(rows)):
            found = torch.autograd.grad(token_logps(model, batch)[number], trained)
            torch.testing.assert_close(found, expected, **CLOSE.get(family, {}))


@pytest.mark.parametrize("adapter", [False, True])
def test_restarted_positions_keep_documents_apart(adapter: bool) -> None:
    """A family whose attention is its own code, with no mask of its own for our function's name."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = tf.GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128)
    model: torch.nn.Module = tf.GPTJForCausalLM(config).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    check = check_packing(model, VOCAB)
    assert (check.ok, check.way) == (True, "positions")
    if adapter:
        options = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, options, autocast_adapter_dtype=False).double()
    rows = rows_of(VOCAB)
    expected = loss_and_gradients(model, [pad([row]) for row in rows])
    assert not packs_documents(model)
    # Its scores are computed in float32.
    torch.testing.assert_close(loss_and_gradients(model, [pack(rows)]), expected, **CLOSE["gemma2"])


def test_real_model(shared_data: Path) -> None:
    """A trained model of 260 thousand parameters, in float32."""
    folder = shared_data / "lm_stories260k" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    texts = [
        "Once upon a time, there was a little girl named Lily.",
        "Tom had a red ball.",
        "The dog ran to the big tree and sat.",
    ]
    rows = []
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        labels = ids.clone()
        labels[:3] = IGNORE_INDEX
        rows.append((ids, labels, torch.ones(len(ids))))
    check = check_packing(model, model.config.vocab_size)
    assert (check.ok, check.way) == (True, "documents")
    expected = loss_and_gradients(model, [pad([row]) for row in rows])
    mean = float(expected[0] / expected[1])
    assert mean < 2, "the model knows such sentences: a shifted label would cost far more"
    for batch in (pad(rows), pack(rows)):
        torch.testing.assert_close(loss_and_gradients(model, [batch]), expected, rtol=1e-4, atol=2e-4)
