"""Documents of a packed row: kept apart over model families, refused where that fails, and stock attention left alone."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_ft.engine import attention
from lightning_ft.engine.attention import documents, documents_attention, forward_kwargs
from lightning_ft.engine.loss import token_loss
from lightning_ft.engine.model import base_model
from lightning_ft.engine.packing import check_packing
from lightning_ft.errors import TrainingError
from lightning_ft.types import Batch

VOCAB = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WITH_DIM = BASE | {"head_dim": 8}
PLAIN = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
HALF_SLIDING = ["sliding_attention", "full_attention"]
EXACT: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**WITH_DIM),
    "qwen2-sliding": lambda: tf.Qwen2Config(**BASE, use_sliding_window=True, sliding_window=5, layer_types=HALF_SLIDING),
    "qwen3": lambda: tf.Qwen3Config(**WITH_DIM),
    "gemma2-sliding-capped": lambda: tf.Gemma2Config(
        **WITH_DIM, **EAGER, sliding_window=5, attn_logit_softcapping=0.5, layer_types=HALF_SLIDING
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(**WITH_DIM, sliding_window=5, layer_types=HALF_SLIDING),
    "mistral-sliding": lambda: tf.MistralConfig(**WITH_DIM, sliding_window=5),
    "phi3-sliding": lambda: tf.Phi3Config(**BASE, sliding_window=5),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**PLAIN),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "starcoder2": lambda: tf.Starcoder2Config(**BASE),
    "granite": lambda: tf.GraniteConfig(**BASE),
    "cohere": lambda: tf.CohereConfig(**BASE),
    "gpt-oss-sinks": lambda: tf.GptOssConfig(
        **WITH_DIM, **EAGER, num_local_experts=2, num_experts_per_tok=1, sliding_window=5, layer_types=HALF_SLIDING,
    ),
}  # fmt: skip
REFUSED: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: tf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, use_mambapy=False),
    "stablelm": lambda: tf.StableLmConfig(**BASE),
    "lfm2": lambda: tf.Lfm2Config(**BASE, layer_types=["conv", "full_attention"]),
}


def make(config: tf.PreTrainedConfig) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    model: tf.PreTrainedModel = tf.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # of transformers
        config, attn_implementation=config._attn_implementation
    )
    with torch.no_grad():
        for p in model.parameters():  # the usual start makes logits so small that a leak would hardly show
            p.copy_(torch.randn_like(p) * 0.2 if p.ndim > 1 else p + torch.randn_like(p) * 0.1)
    # transformers' grouped experts have no float64.
    trained: tf.PreTrainedModel = model.train() if config.model_type == "gpt_oss" else model.double().train()
    return trained


def llama() -> tf.LlamaForCausalLM:
    return cast(tf.LlamaForCausalLM, make(EXACT["llama"]()))


def packed(lengths: tuple[int, ...] = (7, 9, 3), seed: int = 0) -> tuple[list[torch.Tensor], Batch]:
    """The documents one by one, and all of them in one row."""
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.randint(3, VOCAB, (1, n), generator=draw) for n in lengths]
    borders = tuple(sum(lengths[:n]) for n in range(len(lengths) + 1))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.cat(parts, 1)
    return parts, Batch(ids, ids.clone(), positions, borders, tuple(map(str, range(len(lengths)))), lengths=lengths)


@pytest.mark.parametrize("family", EXACT)
def test_packed_rows_are_exact(family: str) -> None:
    config = EXACT[family]()
    model = make(config)
    check = check_packing(model, VOCAB)
    assert check.ok
    assert check.way == "documents", check
    assert check.difference < 1e-6
    parts, batch = packed((7, 19, 1, 12))
    model.eval()  # type: ignore[no-untyped-call]  # of transformers
    with documents(model):
        logits = model(input_ids=batch.input_ids, **forward_kwargs(batch)).logits
    separate = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
    # transformers' eager attention, which capped scores need, takes its softmax in float32.
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if config._attn_implementation == "eager" else {}
    torch.testing.assert_close(logits, separate, **tolerance)


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_mix_documents_are_refused(family: str) -> None:
    if family == "mamba":
        pytest.importorskip("transformers.models.mamba")
    model = make(REFUSED[family]())
    check = check_packing(model, VOCAB)
    if check.ok:  # a family may become exact by stock attention; then it must say so and be exact
        assert check.way == "positions"
        assert check.difference < 1e-6
    else:
        assert check.reason.startswith("Packing is off")
        assert check.way == "none"


def test_lost_keywords_are_noticed() -> None:
    """A model that does not pass cu_seq_lens on fails in our function; restarted positions still keep documents apart."""
    model = llama()
    inner = model.model.forward

    def forward(*args: Any, cu_seq_lens: object = None, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    model.model.forward = forward
    check = check_packing(model, VOCAB)
    assert (check.ok, check.way) == (True, "positions")
    assert "without document borders" in check.reason
    before = model.config._attn_implementation
    with documents(model):
        assert model.config._attn_implementation == before


def test_unseen_window_is_noticed() -> None:
    """The check's documents are shorter than most windows, so that it counts the layers that got one."""
    config = tf.MistralConfig(**WITH_DIM, sliding_window=64)
    model = make(config)
    assert check_packing(model, VOCAB).way == "documents"
    for module in model.modules():
        if isinstance(module, tf.models.mistral.modeling_mistral.MistralAttention):
            module.config = type(config).from_dict(config.to_dict() | {"sliding_window": None})
            module.config._attn_implementation = "sdpa"
    attention._switches.clear()
    assert "sliding windows do not reach" in check_packing(model, VOCAB).reason


def test_positions_that_follow_from_the_longest_document_are_not_packed() -> None:
    """Beside a document beyond the original context all others of its row would get its frequencies."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, **factors}
    model = make(tf.LlamaConfig(**WITH_DIM, rope_parameters=rope))
    assert check_packing(model, VOCAB, longest=64).ok
    check = check_packing(model, VOCAB, longest=65)
    assert (check.ok, check.way) == (False, "none")
    assert "type longrope depend on the longest document" in check.reason


def test_without_borders_it_raises() -> None:
    model = llama()
    with documents(model), pytest.raises(TrainingError, match="without document borders"):
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)


@pytest.mark.parametrize(
    "change", [{"cu_seq_lens": (0, 3, 9)}, {"attention_mask": torch.ones(1, 1, 8, 8)}, {"is_causal": False}]
)
def test_what_documents_cannot_do_is_refused(change: dict[str, Any]) -> None:
    q = torch.randn(1, 2, 8, 4)
    with pytest.raises(TrainingError, match="packing off"):
        documents_attention(nn.Identity(), q, q, q, **({"attention_mask": None, "cu_seq_lens": (0, 3, 8)} | change))


def test_stock_attention_is_back_afterwards() -> None:
    model = llama()
    before = model.config._attn_implementation
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    expected = model(input_ids=ids, use_cache=False).logits
    with documents(model):
        assert model.config._attn_implementation == attention.DOCUMENTS
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected)
    assert base_model(model).generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 6)
    with pytest.raises(ZeroDivisionError), documents(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


def grad_of(p: nn.Parameter) -> torch.Tensor:
    assert p.grad is not None
    return p.grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2-sliding-capped", "gpt2"])
def test_layers_run_again_in_the_backward_pass_keep_documents_apart(family: str, reentrant: bool) -> None:
    """The backward pass begins after the block is left; stock attention would let documents see each other there."""
    model, (_, batch) = make(EXACT[family]()), packed()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # of transformers
        model.zero_grad()
        token_loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        grads.append({name: grad_of(p).clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[1], grads[0])
    names = [vars(module)["_gradient_checkpointing_func"].func for module in model.modules()
             if "_gradient_checkpointing_func" in vars(module)]  # fmt: skip
    assert names
    assert all(name is torch.utils.checkpoint.checkpoint for name in names)


def test_torch_checkpoint_wrapper_keeps_documents_apart() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

    model, (_, batch) = llama(), packed()
    wanted = torch.autograd.grad(token_loss(model, batch)[0], model.lm_head.weight)[0]
    token_loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    before = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    attention._switches.clear()
    layers = [checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT) for layer in model.model.layers]
    model.model.layers = nn.ModuleList(layers)
    token_loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(model.lm_head.weight.grad, wanted)
    weight = layers[0].get_parameter("_checkpoint_wrapped_module.self_attn.q_proj.weight")
    torch.testing.assert_close(weight.grad, before)


def test_no_mask_over_the_row_is_made() -> None:
    """Nothing as large as T x T is allocated, by transformers or by us."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
        numel = 0

        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.untyped_storage().nbytes() // out.element_size())
            return out

    model = llama()
    _, batch = packed((20,) * 30)
    with Largest() as seen, torch.no_grad(), documents(model):  # type: ignore[no-untyped-call]  # of torch
        model.model(input_ids=batch.input_ids, **forward_kwargs(batch))
    assert seen.numel < 600 * 600
    with Largest() as seen, torch.no_grad():  # type: ignore[no-untyped-call]  # of torch
        model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    assert seen.numel >= 600 * 600, "stock attention makes the mask; if not, this test measures nothing"


class Grouped(nn.Module):
    """What transformers asks of an attention layer."""

    is_causal, num_key_value_groups = True, 2


def test_one_document_equals_transformers_sdpa() -> None:
    q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    module = Grouped()
    expected, _ = sdpa_attention_forward(module, q, k, v, None, scaling=0.3)
    found, _ = documents_attention(module, q, k, v, None, scaling=0.3, cu_seq_lens=(0, 9))
    torch.testing.assert_close(found, expected)


def test_varlen_has_the_arguments_that_are_used() -> None:
    """Where torch ships the kernel in the form that is used, the call binds; only a GPU can run it."""
    function = attention._varlen_function()
    if function is None:
        pytest.skip("this torch's varlen_attn has another form; per-document attention is used")
    q = torch.randn(9, 4, 8)
    borders, longest = attention._borders((0, 4, 9), torch.device("cpu"))
    assert (borders.tolist(), borders.dtype, longest) == ([0, 4, 9], torch.int32, 5)
    inspect.signature(function).bind(q, q, q, borders, borders, longest, longest, scale=None, window_size=(-1, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_equals_documents_one_by_one_on_a_gpu(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 300, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    borders = (0, 100, 101, 300)
    assert attention._varlen_fits(q, v, 0.0)
    fast, _ = documents_attention(nn.Identity(), q, k, v, None, cu_seq_lens=borders, sliding_window=window)
    wide, _ = documents_attention(
        nn.Identity(), q.float(), k.float(), v.float(), None, cu_seq_lens=borders, sliding_window=window
    )
    torch.testing.assert_close(fast.float(), wide, rtol=2e-2, atol=2e-2)
