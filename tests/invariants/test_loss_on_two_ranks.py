"""The loss under DDP and FSDP2 on two CPU ranks: gradients equal those of one process that sees both ranks' rows."""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers as tf
from torch.distributed.tensor import DTensor

from lightning_ft.engine.loss import head_path, score_rows, token_loss
from lightning_ft.engine.model import base_model
from lightning_ft.engine.packing import check_packing
from lightning_ft.engine.verify import verify_head
from lightning_ft.testing.ranks import as_rank, run_on_ranks
from lightning_ft.types import IGNORE_INDEX, Batch

CASES = [("ddp", False), ("ddp", True), ("fsdp2", False), ("fsdp2", True), ("fsdp2-head", False)]
"""How the model is spread, and whether its head is the embedding."""


def make(tied: bool) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    model: tf.PreTrainedModel = tf.LlamaForCausalLM(config).double().train()
    return model


def batch_of(rank: int) -> Batch:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(rank))
    labels = ids.clone()
    labels[:, : 3 + rank] = IGNORE_INDEX
    return Batch(ids, labels, torch.arange(9).expand(2, 9), None, ("a:1", "a:2"))


def wrap(model: tf.PreTrainedModel, kind: str) -> torch.nn.Module:
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    parts = [*base_model(model).model.layers, *([base_model(model).lm_head] if kind == "fsdp2-head" else []), model]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return model


def compare(rank: int, kind: str, tied: bool) -> None:
    reference = make(tied)
    for number in range(2):
        batch = batch_of(number)
        logits = reference(input_ids=batch.input_ids).logits[:, :-1].flatten(0, 1)
        half = F.cross_entropy(logits, batch.labels[:, 1:].flatten(), reduction="sum") / 2
        half.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    expected = {name: p.grad for name, p in reference.named_parameters()}
    scores = score_rows(reference, batch_of(rank))

    model = wrap(make(tied), kind)
    if kind != "ddp":  # Lightning wraps the whole module, so that DDP itself is never asked
        assert "equal" in verify_head(model, batch_of(rank))
        assert check_packing(model, 97).way == "documents"
    assert head_path(model).name == ("selected" if kind == "fsdp2-head" else "chunked")
    token_loss(model, batch_of(rank))[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        torch.testing.assert_close(grad, expected[name.removeprefix("module.")])
    torch.testing.assert_close(score_rows(model, batch_of(rank)), scores)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    outputs = run_on_ranks(__file__, 2, tmp_path)
    assert outputs[0].count("equal: ") == len(CASES)


if __name__ == "__main__":
    with as_rank() as number:
        for case in CASES:
            compare(number, *case)
            print("equal:", *case)
