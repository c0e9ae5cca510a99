"""Trains the tokenizer of the embedded base model and writes the folder from which its pretraining starts.

The folder has the tokenizer (byte-level BPE, digits one by one, the chat template within) and the model's configuration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import GenerationConfig, LlamaConfig

VOCABULARY = 6144
CONTEXT = 512
PAD, BOS, EOS, TURN, END = "<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (PAD, BOS, EOS, TURN, END)
IDS = {token: i for i, token in enumerate(SPECIALS)}
"""The trainer gives the special tokens the first ids, in order."""
WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
"""How text is split before merging: contractions, words with their leading space, single digits, punctuation, line ends."""
# A newline right after a block tag is eaten when transformers renders the template: hence {{ '\n' }}.
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def texts(path: Path) -> Iterator[str]:
    """The raw text rows of the training part."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def train(rows: Iterator[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries, the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    return tokenizer


def config() -> LlamaConfig:
    """The architecture: 4.8 million parameters, 9.6 MB in bf16."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=704, max_position_embeddings=CONTEXT, tie_word_embeddings=True, dtype="bfloat16",
        pad_token_id=IDS[PAD], bos_token_id=IDS[BOS], eos_token_id=[IDS[END], IDS[EOS]], architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer, template, configuration and generation settings."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types only some of its signatures
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, extra_special_tokens=[TURN, END],
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False, padding_side="right",
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config().save_pretrained(folder)
    generation_config().save_pretrained(folder)


def generation_config() -> GenerationConfig:
    """Greedy answers that end with the turn, or with the document."""
    from transformers import GenerationConfig

    stops = [IDS[END], IDS[EOS]]
    return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers types only some of its signatures
        pad_token_id=IDS[PAD], bos_token_id=IDS[BOS], eos_token_id=stops, do_sample=False
    )


def main(argv: list[str] | None = None) -> int:
    """Train on `--data` (the folder that `prepare.py` wrote) and write `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    tokenizer = train(texts(args.data / "text" / "train.jsonl"))
    save(tokenizer, args.output)
    print(f"{args.output}: {', '.join(sorted(path.name for path in args.output.iterdir()))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
