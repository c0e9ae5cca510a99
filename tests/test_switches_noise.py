"""Noise in training: NEFTune's on the embeddings, dropout by one number; neither in evaluation, both repeatable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from torch import nn

from lightning_ft.backbone import set_dropout
from lightning_ft.builtin import SFT
from lightning_ft.data.collate import muted
from lightning_ft.engine.attention import documents_attention
from lightning_ft.engine.loss import score_rows
from lightning_ft.engine.model import base_model
from lightning_ft.engine.noise import EmbeddingNoise
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.registry import registry
from lightning_ft.testing.methods import attach
from lightning_ft.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from lightning_ft.testing.objectives import text_batch
from lightning_ft.types import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tests.conftest import TinyFit

ALPHA, WIDTH, DRAWS = 5.0, 32, 300


def packed() -> Batch:
    """Documents of 4 and 40 tokens, and 6 tokens that only fill the row up."""
    ids = torch.arange(50)[None]
    return Batch(ids, ids.clone(), ids.clone(), (0, 4, 44, 50), ("a:1", "a:2"), lengths=(4, 40))


def padded() -> Batch:
    """The same documents as rows of 40 tokens."""
    ids = torch.arange(80).view(2, 40)
    return Batch(ids, ids.clone(), ids.clone(), None, ("a:1", "a:2"), lengths=(4, 40))


def drawn(noise: EmbeddingNoise, model: nn.Module, batch: Batch) -> Tensor:
    """(DRAWS, B, T, D) of noise."""
    embed: Any = base_model(model).get_input_embeddings()
    torch.manual_seed(0)
    with noise.on(batch):
        found = [embed(batch.input_ids).detach() - embed.weight[batch.input_ids].detach() for _ in range(DRAWS)]
    return torch.stack(found)


@pytest.mark.parametrize("batch", [packed(), padded()], ids=["packed", "padded"])
def test_each_document_has_the_variance_of_its_own_length(batch: Batch) -> None:
    """Uniform in +-a has the variance a^2 / 3, here with a = alpha / sqrt(L d); within 2 % over 38,400 draws or more."""
    model = tiny_llama().train()
    found = drawn(EmbeddingNoise(model, ALPHA), model, batch)
    short, long = (found[:, 0, :4], found[:, 0, 4:44]) if batch.documents else (found[:, 0, :4], found[:, 1])
    for part, length in ((short, 4), (long, 40)):
        bound = ALPHA / (length * WIDTH) ** 0.5
        assert float(part.var()) == pytest.approx(ALPHA**2 / (3 * length * WIDTH), rel=0.02)
        assert abs(float(part.mean())) < 5 * bound / (3 * part.numel()) ** 0.5
        assert 0.999 * bound < float(part.abs().max()) <= bound * 1.001
    rest = found[:, 0, 44:] if batch.documents else found[:, 0, 4:]
    assert rest.numel()
    assert not rest.any(), "padding has no noise"


def test_a_batch_that_only_keeps_a_rank_in_step_has_none() -> None:
    model = tiny_llama()
    noise, batch = EmbeddingNoise(model, 5.0), muted(padded())
    plain = model.get_input_embeddings()(batch.input_ids)
    with noise.on(batch):
        assert torch.equal(model.get_input_embeddings()(batch.input_ids), plain)


def test_there_is_none_without_a_gradient_nor_outside_of_a_step() -> None:
    model = tiny_llama().train()
    noise, batch = EmbeddingNoise(model, ALPHA), padded()
    embed: Any = base_model(model).get_input_embeddings()
    with noise.on(batch), torch.no_grad():
        assert torch.equal(embed(batch.input_ids), embed.weight[batch.input_ids])
    assert torch.equal(embed(batch.input_ids), embed.weight[batch.input_ids])
    with noise.on(batch), pytest.raises(TrainingError, match=r"embeds \(1, 7\) tokens of a batch of \(2, 40\)"):
        embed(torch.arange(7)[None])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", list(registry().methods))
def test_every_method_trains_with_it(name: str) -> None:
    """The loss changes with the noise alone, and scores stay as they were; virtual tokens in front of the batch's are refused
    as tokens that nobody knows, so that there are none among what is embedded."""
    method = registry().methods[name].cls()
    try:
        model = attach(method, "llama")
    except UsageError:  # Llama has no biases to train
        model = attach(method, "gpt2")
    batch = text_batch()
    batch.lengths = tuple(int((row != 256).sum()) for row in batch.input_ids)
    plain = score_rows(model.eval(), batch)
    noise = EmbeddingNoise(model, 50.0)
    model.train()

    def loss(*, noisy: bool) -> float:
        torch.manual_seed(0)
        if not noisy:
            return float(SFT()(model, batch).terms["nll"].sum.detach())
        with noise.on(batch):
            return float(SFT()(model, batch).terms["nll"].sum.detach())

    torch.testing.assert_close(loss(noisy=False), loss(noisy=False), rtol=0, atol=0)
    assert loss(noisy=True) != pytest.approx(loss(noisy=False), rel=1e-4)
    assert loss(noisy=True) == loss(noisy=True)
    assert score_rows(model.eval(), batch) == plain


def test_a_run_repeats_itself_with_noise_and_validates_without(tiny_fit: TinyFit) -> None:
    plain, noisy, again, other = (
        tiny_fit(neftune_noise_alpha=alpha, seed=seed, learning_rate=1e-30, max_steps=2)
        for alpha, seed in ((None, 0), (ALPHA, 0), (ALPHA, 0), (2 * ALPHA, 0))
    )
    assert noisy.losses == again.losses
    assert len({tuple(run.losses) for run in (plain, noisy, other)}) == 3
    assert plain.validations() == noisy.validations()
    assert noisy.weights[0].keys() == plain.weights[0].keys(), "nothing of it is saved"


@pytest.mark.parametrize("alpha", [0.0, None])
def test_no_noise_is_no_hook(tiny_fit: TinyFit, alpha: float | None) -> None:
    assert tiny_fit(neftune_noise_alpha=alpha, max_steps=2).losses == tiny_fit(max_steps=2).losses


# ---- dropout ---------------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=2),
    "phi": lambda: tf.PhiConfig(**SIZES),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: tf.GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=64),
    "opt": lambda: tf.OPTConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16),
    "falcon": lambda: tf.FalconConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, parallel_attn=False),
    "persimmon": lambda: tf.PersimmonConfig(**SIZES),
    "bloom": lambda: tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_a_family_is_what_the_switch_says(family: str) -> None:
    """Half of everything dropped: training differs from draw to draw and repeats itself by seed, evaluation is as before.

    Nothing dropped, of a model whose config drops a third wherever it can: training is evaluation, so no dropout is missed.
    """
    torch.manual_seed(0)
    config: Any = FAMILIES[family]()
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float) and not name.startswith(("layer", "classifier", "summary")):
            setattr(config, name, 1 / 3)
    model: Any = tf.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # of transformers
    ids, before = torch.arange(3, 20)[None], model.config.to_dict()
    plain = model.eval()(input_ids=ids).logits

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        out: Tensor = model(input_ids=ids).logits
        return out.detach()

    set_dropout(model, 0.5)
    model.train()
    assert torch.equal(logits(1), logits(1))
    assert (logits(1) - logits(2)).norm() > 0.01 * logits(1).norm()
    assert torch.equal(model.eval()(input_ids=ids).logits, plain)
    assert model.config.to_dict() == before, "the saved model's config is its own"
    set_dropout(model.train(), 0.0)
    torch.testing.assert_close(logits(1), plain)


def test_the_share_of_zeros_is_the_probability() -> None:
    model: Any = tiny_gpt2().train()
    set_dropout(model, 0.3)
    seen: list[Tensor] = []
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    handles = [module.register_forward_hook(lambda m, args, out: seen.append(out.detach())) for module in dropouts]
    torch.manual_seed(0)
    model(input_ids=torch.randint(0, 255, (8, 200)))
    for handle in handles:
        handle.remove()
    assert len(seen) >= 5, "of the embeddings, and of both branches of both layers"
    for out in seen:
        assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("options", [{}, {"softcap": 30.0}, {"sliding_window": 25}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_drops_its_weights(options: dict[str, Any], dtype: torch.dtype) -> None:
    """With values of one-hot rows the output is the attention itself: causal weights of each document, a share of them 0."""
    borders, length = (0, 20, 60), 60
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 4, length, 64).to(dtype)
    value = torch.eye(length).expand(1, 4, length, length).contiguous().to(dtype)
    layer: Any = SimpleNamespace()

    def weights(dropout: float) -> Tensor:
        return documents_attention(layer, query, key, value, None, dropout, cu_seq_lens=borders, **options)[0].transpose(1, 2)

    whole, dropped = weights(0.0), weights(0.25)
    looked = whole != 0
    assert looked.sum() > 2000
    share = float((dropped[looked] == 0).float().mean())
    assert share == pytest.approx(0.25, abs=0.02)
    kept = looked & (dropped != 0)
    torch.testing.assert_close(dropped[kept].float(), whole[kept].float() / 0.75, rtol=2e-2, atol=1e-3)
    assert not dropped[~looked].any()


@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_run_with_dropout_repeats_itself_and_validates_without(tiny_fit: TinyFit, packing: str) -> None:
    plain, dropped, again = (tiny_fit(dropout=p, learning_rate=1e-30, max_steps=2, packing=packing) for p in (None, 0.4, 0.4))
    assert dropped.losses == again.losses
    assert all(abs(a - b) > 1e-4 for a, b in zip(dropped.losses, plain.losses, strict=True))
    assert dropped.validations() == plain.validations()


def test_a_model_without_dropout_is_refused_before_there_is_a_folder(tiny_fit: TinyFit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got Linear, which has none; leave --dropout out"):
        set_dropout(nn.Linear(2, 2), 0.1)
    set_dropout(nn.Linear(2, 2), 0.0)  # asks for nothing
    config = tf.MambaConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=256)
    model: Any = tf.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # of transformers
    model.save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    with pytest.raises(UsageError, match=r"^Expected a model with dropouts for --dropout, got MambaForCausalLM, which has"):
        tiny_fit(model=str(tmp_path / "mamba"), dropout=0.1)
    assert not Path("runs").exists()
