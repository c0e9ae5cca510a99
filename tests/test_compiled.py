"""Decoder layers through torch.compile: how often that compiles, what stays as it was, and what is refused.

What decides how often is the tracing, the same with every backend. So short tests trace only and run what was traced as it is;
the long ones take the compiler itself, for minutes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from lightning_ft.builtin import Full
from lightning_ft.config import TrainingConfig
from lightning_ft.engine import compiled
from lightning_ft.engine.compiled import check_compiler, compile_layers
from lightning_ft.engine.gated import fuse_gates, fuse_rotations
from lightning_ft.engine.loss import score_rows, token_loss
from lightning_ft.engine.norm import fuse_norms
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.run.ways import check_ways
from lightning_ft.types import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TinyFit

# A run shows neither (run/quiet.py): both come of what the compiler itself does.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*attribute of a Tensor that is not a leaf Tensor is being accessed:UserWarning"),
]
VOCAB = 97
FAMILIES: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
}  # fmt: skip


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced anew, and run as they were traced."""
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    compiled._compiled.cache_clear()
    torch._dynamo.reset()


def make(family: str, *, adapter: bool, every: int = 0) -> Any:
    torch.manual_seed(0)
    model: Any = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())  # type: ignore[no-untyped-call]  # transformers leaves it
    if every:
        checkpoint_activations(model, every)
    if adapter:
        from peft import LoraConfig, get_peft_model

        options = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, options)
    for fuse in (fuse_norms, fuse_gates, fuse_rotations):
        fuse(model)
    return model.train()


def padded(rows: int, length: int) -> Batch:
    ids = torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))
    return Batch(ids, ids, torch.arange(length).expand_as(ids), None, tuple(map(str, range(rows))))


def packed(*lengths: int) -> Batch:
    ids = torch.randint(VOCAB, (1, sum(lengths)), generator=torch.Generator().manual_seed(sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    borders = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    return Batch(ids, ids, positions, borders, tuple(map(str, lengths)))


def gradients(model: Any, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss, _ = token_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


PADDED = [padded(rows, length) for rows, length in ((3, 64), (2, 65), (4, 80), (3, 97), (2, 128), (5, 101))]
PACKED = [packed(*lengths) for lengths in ((30, 34), (65,), (20, 13, 50), (11, 12, 13, 14, 15, 16), (100, 28), (7, 94))]


@pytest.mark.parametrize(("batches", "graphs", "breaks"), [(PADDED, 1, 0), (PACKED, 4, 2)], ids=["padded", "packed"])
@pytest.mark.parametrize(("family", "adapter", "every"), [("llama", True, 0), ("gpt2", False, 2)], ids=["llama", "gpt2"])
def test_lengths_rows_documents_and_layers_share_graphs(
    traced: None, family: str, adapter: bool, every: int, batches: list[Batch], graphs: int, breaks: int
) -> None:
    """Lengths from 64 to 128. Attention over packed rows is not traced: it divides the layer, and the attention in it."""
    plain, other = (make(family, adapter=adapter, every=every) for _ in range(2))
    assert compile_layers(other) == 3
    for batch in batches:
        (loss, wanted), (same, found) = gradients(plain, batch), gradients(other, batch)
        assert same == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found, wanted)
        assert counters["stats"]["unique_graphs"] == graphs
        assert sum(counters["graph_break"].values()) == breaks
    if breaks == 0:
        gradients(other, padded(1, 90))
        assert counters["stats"]["unique_graphs"] == 2, "a single row has a graph of its own"


def test_only_training_is_compiled(traced: None) -> None:
    plain, other = (make("llama", adapter=True) for _ in range(2))
    compile_layers(other)
    assert list(other.state_dict()) == list(plain.state_dict())
    assert [type(m).__name__ for m in other.modules()] == [type(m).__name__ for m in plain.modules()]
    for batch in (PADDED[0], PACKED[0]):
        assert score_rows(other, batch) == score_rows(plain, batch)
    with torch.no_grad():
        other(PADDED[0].input_ids)
    for model in (plain, other):
        model.eval()
        gradients(model, PADDED[0])
    start = PADDED[0].input_ids[:1, :5]
    answers = [model.generate(start, max_new_tokens=5, do_sample=False) for model in (plain, other)]
    assert torch.equal(*answers)
    assert not counters["stats"], "nothing was compiled"
    plain, other = (model.merge_and_unload() for model in (plain, other))
    assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))


def test_frozen_layers_below_those_that_train_are_not_gone_back_through(traced: None) -> None:
    model = make("gpt2", adapter=False)
    model.requires_grad_(False)
    model.transformer.h[2].requires_grad_(True)
    compile_layers(model)
    seen: list[bool] = []
    for layer in model.transformer.h:
        layer.register_forward_hook(lambda _, args, out: seen.append((out[0] if isinstance(out, tuple) else out).requires_grad))
    _, found = gradients(model, PADDED[0])
    assert seen[-3:] == [False, False, True], "before, the head was looked at"
    assert found
    assert all(name.startswith("transformer.h.2.") for name in found)


def test_what_cannot_be_compiled_is_refused(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^Expected a model of decoder layers for --compile, got Linear, which has none; "):
        compile_layers(nn.Linear(2, 2))
    config = TrainingConfig(model="m", data=["d"], compile=True, strategy="fsdp")
    with pytest.raises(UsageError, match=r"^Expected --strategy auto or ddp with --compile, .* in shards; got fsdp\.$"):
        check_ways(config, Full(), torch.device("cpu"), whole=False)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=fails))  # type: ignore[attr-defined]  # of the fixture
    model = make("llama", adapter=False)
    compile_layers(model)
    with pytest.raises(TrainingError, match=r"^This model's layers cannot be .*no such thing.*; leave --compile out\.$"):
        token_loss(model, PADDED[0])


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or what was compiled here before would be taken
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UsageError) as caught:
        check_compiler(torch.device("cpu"))
    assert str(caught.value).startswith("Expected torch.compile to work here for --compile, which takes a C++ compiler and ")
    assert str(caught.value).endswith("; leave --compile out.")
    assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("packing", ["on", "off"])
def test_a_compiled_run_is_the_run(tiny_fit: TinyFit, packing: str) -> None:
    """Losses, validations and answers to rounding, files of the same names; recomputation on top."""
    options: dict[str, Any] = {"method": "lora", "packing": packing, "learning_rate": 0.01, "save_every": 3, "eval_every": 3}
    plain, other, again = (
        tiny_fit(**options, **more) for more in ({}, {"compile": True}, {"compile": True, "gradient_checkpointing": 2})
    )
    for run in (other, again):
        assert run.losses == pytest.approx(plain.losses, rel=1e-4)
        assert run.validations() == pytest.approx(plain.validations(), rel=1e-4)
        found, wanted = (load_file(r.run.folder / "final_model" / "adapter_model.safetensors") for r in (run, plain))
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
        assert not all(torch.equal(found[name], weight) for name, weight in wanted.items()), "it was compiled"


@pytest.mark.long
def test_a_compiled_run_goes_on_with_the_same_dropout(tiny_fit: TinyFit, tiny_folder: Path) -> None:
    """A run that was broken off, one with recomputed layers, and the whole run: the same losses."""
    options: dict[str, Any] = {
        "model": str(tiny_folder / "gpt2"), "dropout": 0.2, "compile": True, "learning_rate": 0.01, "save_every": 3,
        "keep_best": 9,
    }  # fmt: skip

    class Broken(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch.number == 4:
                raise RuntimeError("broken off")

    whole = tiny_fit(**options)
    undropped = tiny_fit(**options | {"dropout": 0.0})
    assert whole.losses[0] != pytest.approx(undropped.losses[0], rel=1e-4)
    recomputed = tiny_fit(**options, gradient_checkpointing=True)
    assert recomputed.losses == pytest.approx(whole.losses, rel=1e-6)
    with pytest.raises(RuntimeError, match="broken off"):
        tiny_fit(watched=False, **options, output="cut", trainer={"callbacks": [Broken()]})
    assert tiny_fit(**options, output="cut", resume="cut").losses == whole.losses[3:]
