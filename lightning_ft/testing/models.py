"""Tiny seeded models and a byte-level tokenizer, built in memory: what a contract is checked on, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Family = Literal["llama", "gpt2"]
"""A family with `nn.Linear`, rotary positions and a head of its own; one with `Conv1D`, learned positions and a tied head."""
FAMILIES: tuple[Family, ...] = get_args(Family)

PAD, BOS, START, STOP = "<|pad|>", "<|bos|>", "<|start|>", "<|stop|>"
VOCABULARY = 260
"""256 bytes and the four special tokens."""
CONTEXT = 256
"""Longest input of the tiny models, in tokens."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|stop|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|stop|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (one token per UTF-8 byte) with a chat template; it stops at `<|stop|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, BOS, START, STOP])
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=STOP,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """A Llama of 2 layers, 32 wide, grouped-query attention, untied head, float32; the same weights for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=259,
    )
    return _seeded(lambda: LlamaForCausalLM(config), seed)


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """A GPT-2 of 2 layers, 32 wide, tied head, without dropout, float32; the same weights for the same seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=259,
    )
    return _seeded(lambda: GPT2LMHeadModel(config), seed)


def tiny_model(family: Family, seed: int = 0) -> PreTrainedModel:
    """`tiny_llama` or `tiny_gpt2` by name."""
    return {"llama": tiny_llama, "gpt2": tiny_gpt2}[family](seed)


def tiny_backbone_folder(path: Path, family: Family = "llama", seed: int = 0) -> Path:
    """Save a tiny model and its tokenizer into `path` as `from_pretrained` reads them, and return `path`."""
    tiny_model(family, seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def _seeded(build: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    """Build with the global generator seeded, and leave the generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    # Random weights of 0.02 make logits so flat that a wrong position or a wrong adapter hardly shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return model
