"""Layers cut in two by transformers' plans, with each kind of cut that there is: gradients equal those of whole layers."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch.distributed.tensor import DTensor

from lightning_ft.engine.loss import score_rows, token_loss
from lightning_ft.engine.sharding import DATA, TENSOR, Shards
from lightning_ft.testing.ranks import as_rank, run_on_ranks
from lightning_ft.types import IGNORE_INDEX, Batch

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "qwen2": tf.Qwen2Config,  # biases of columns
    "qwen3": tf.Qwen3Config,  # norms of single heads, whole in each process
    "phi3": tf.Phi3Config,  # one matrix for several, gathered before it is taken apart
    "olmo2": tf.Olmo2Config,  # norms over all heads
    "gemma2": tf.Gemma2Config,
}


def batch() -> Batch:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :3] = IGNORE_INDEX
    return Batch(ids, labels, torch.arange(9).expand(2, 9), None, ("a:1", "a:2"))


def make(name: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    auto: Any = tf.AutoModelForCausalLM
    model: tf.PreTrainedModel = auto.from_config(CONFIGS[name](**SIZES)).double().train()
    return model


def compare(name: str, pieces: int, ranks: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    reference, model = make(name), make(name)
    token_loss(reference, batch())[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    mesh = init_device_mesh("cpu", (ranks // pieces, pieces), mesh_dim_names=(DATA, TENSOR))
    shards = Shards(model, mesh, spread=pieces < ranks, compute=None)
    assert any(isinstance(p, DTensor) for p in model.parameters())
    token_loss(model, batch())[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    shards.finish_gradients()
    expected = {key: p.grad for key, p in reference.named_parameters()}
    for key, p in model.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        assert grad is not None, (name, key)
        torch.testing.assert_close(grad, expected[key], msg=f"{name}: {key}")
    torch.testing.assert_close(score_rows(model, batch()), score_rows(reference, batch()))


def test_cut_layers_have_the_gradients_of_whole_ones(tmp_path: Path) -> None:
    outputs = run_on_ranks(__file__, 4, tmp_path)
    assert outputs[0].count("equal: ") == len(CONFIGS)


if __name__ == "__main__":
    with as_rank():
        for which in CONFIGS:
            compare(which, 2, 4)
            print("equal:", which)
