"""Layers that are run again in the backward pass: which, with what result, and what is kept meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from torch import nn

from lightning_ft.builtin import Full
from lightning_ft.config import TrainingConfig
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.errors import UsageError
from lightning_ft.run.folder import config_hash
from lightning_ft.run.ways import check_ways
from lightning_ft.testing.models import CONTEXT, VOCABULARY, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import TinyFit

LAYERS = 5
BASE: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 259}
CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(
        **BASE, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    ),
    "gpt2": lambda: tf.GPT2Config(**BASE, n_positions=CONTEXT, n_embd=32, n_layer=LAYERS, n_head=4),
}  # fmt: skip


def make(family: str) -> Any:
    torch.manual_seed(0)
    made: Any = tf.AutoModelForCausalLM.from_config(CONFIGS[family]())  # type: ignore[no-untyped-call]  # transformers leaves it
    return made.train()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of five layers."""
    folder = tmp_path_factory.mktemp("five")
    for family in CONFIGS:
        make(family).save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
    return folder


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("method", ["full", {"name": "lora", "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_run_is_the_same_to_the_last_bit(
    tiny_fit: TinyFit, folders: Path, family: str, method: str | dict[str, Any], packing: str
) -> None:
    """With every kind of dropout on, so that layers have to draw the same numbers again."""
    options: dict[str, Any] = {
        "model": str(folders / family), "method": method, "packing": packing, "dropout": 0.1, "learning_rate": 0.01,
        "max_steps": 3,
    }  # fmt: skip
    plain, *others = (tiny_fit(**options, gradient_checkpointing=n) for n in (False, True, 2, LAYERS))
    undropped = tiny_fit(**options | {"dropout": 0.0})
    assert plain.losses[1:] != undropped.losses[1:], "the dropouts count"
    for other in others:
        assert other.losses == plain.losses
        for one, two in zip([*other.gradients, *other.weights], [*plain.gradients, *plain.weights], strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


def layers_of(model: Any) -> list[Any]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(base.transformer.h if hasattr(base, "transformer") else base.model.layers)


def run(model: Any) -> Any:
    ids = torch.arange(60).reshape(2, 30)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize(("every", "passes"), [(0, "11111"), (1, "22222"), (2, "21212"), (3, "21121"), (9, "21111")])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_first_layer_of_each_group_is_run_twice(family: str, every: int, passes: str) -> None:
    model, counts = make(family), [0] * LAYERS
    if every:
        checkpoint_activations(model, every)

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    for number, layer in enumerate(layers_of(model)):
        layer.mlp.register_forward_pre_hook(count(number))
    run(model).backward()
    assert "".join(map(str, counts)) == passes


def kept(model: Any) -> int:
    """Bytes of what autograd keeps of a forward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or its address could be given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run(model)
    del loss
    return sum(found.values())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_kept_lies_between(family: str, adapter: bool) -> None:
    """Each layer that is recomputed leaves out the same, so it is 3 of 5, and 2 of 5, of what all of them leave out."""

    def bytes_kept(every: int) -> int:
        model = make(family)
        if every:
            checkpoint_activations(model, every)
        if adapter:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2"))
        return kept(model)

    none, full, second, third = map(bytes_kept, (0, 1, 2, 3))
    assert full < 0.5 * none
    assert (none - second) / (none - full) == pytest.approx(3 / LAYERS, abs=0.02)
    assert (none - third) / (none - full) == pytest.approx(2 / LAYERS, abs=0.02)


class Old(tf.PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """A model of the kind that recomputes in its own forward, all layers or none."""

    config_class = tf.LlamaConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.embedding = nn.Embedding(2, 2)
        self.gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


class Unable(Old):  # type: ignore[no-untyped-call]  # as above
    supports_gradient_checkpointing = False


def test_models_that_cannot_are_refused() -> None:
    old = Old(CONFIGS["llama"]())
    checkpoint_activations(old)
    assert old.gradient_checkpointing
    with pytest.raises(UsageError, match=r"for --gradient_checkpointing 2, got Old, which has none; type --g.* true\.$"):
        checkpoint_activations(old, 2)
    with pytest.raises(UsageError, match=r"^Expected a model that can .* got Unable, which cannot; leave it out\.$"):
        checkpoint_activations(Unable(CONFIGS["llama"]()))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "to be above 0; got 0."), (-2, "to be above 0; got -2."), (1.5, "to be true or false or a whole number; got 1.5."),
     ("all", "to be true or false or a whole number; got 'all'.")],
)  # fmt: skip
def test_other_numbers_are_refused(value: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingConfig(model="m", data=["d"], gradient_checkpointing=value)
    assert str(caught.value) == f"Expected --gradient_checkpointing {said}"


def test_every_layer_and_true_are_one_run() -> None:
    true, one, two = (TrainingConfig(model="m", data=["d"], gradient_checkpointing=n) for n in (True, 1, 2))
    assert config_hash(true) == config_hash(one) != config_hash(two)
    assert one.gradient_checkpointing is True


# ---- kept in the host's memory ---------------------------------------------------------------------------------------------


def inputs_held(model: Any) -> tuple[str, Any]:
    """Which layers' inputs are there at the end of a forward pass (1) and which are gone (0), and the loss."""
    from torch.multiprocessing.reductions import StorageWeakRef

    seen: list[Any] = []
    weak: Any = StorageWeakRef  # which torch does not type
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(weak(args[0].untyped_storage())))
        for layer in layers_of(model)
    ]
    loss = run(model)
    held = "".join("01"[not storage.expired()] for storage in seen)
    for handle in handles:
        handle.remove()
    return held, loss


@pytest.mark.parametrize(("every", "held"), [(1, "00000"), (2, "01010")])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_layers_are_recomputed_from_is_copied_and_let_go(family: str, every: int, held: str) -> None:
    """On a CPU the copies are made there, too. The inputs of layers that are not recomputed are kept by these."""
    gradients = []
    for offload in (False, True):
        model = make(family)
        checkpoint_activations(model, every, offload=offload)
        found, loss = inputs_held(model)
        assert found == (held if offload else "11111")
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_documents_are_offloaded_with_their_attention() -> None:
    """`documents` puts its own function around the one that offloads."""
    from lightning_ft.engine.loss import token_loss
    from lightning_ft.types import Batch

    ids = torch.arange(40)[None]
    batch = Batch(ids, ids, (torch.arange(40) % 20)[None], (0, 20, 40), ("one", "two"))
    gradients = []
    for offload in (None, False, True):
        model = make("llama")
        if offload is not None:
            checkpoint_activations(model, offload=offload)
        token_loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for found in gradients[1:]:
        assert all(torch.equal(found[name], grad) for name, grad in gradients[0].items())


def test_offloading_needs_a_gpu_and_something_to_offload() -> None:
    with pytest.raises(UsageError, match=r"^Expected --gradient_checkpointing with --activation_offload, which nothing else "):
        TrainingConfig(model="m", data=["d"], activation_offload=True)
    config = TrainingConfig(model="m", data=["d"], activation_offload=True, gradient_checkpointing=2)
    with pytest.raises(UsageError, match=r"^Expected a GPU for --activation_offload, found none: .*; leave it out\.$"):
        check_ways(config, Full(), torch.device("cpu"), whole=True)
    check_ways(config, Full(), torch.device("cuda"), whole=True)
