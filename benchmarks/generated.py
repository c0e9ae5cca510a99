"""A setting that needs no data: a model of any size with seeded random weights, a tokenizer of words, and rows of exact length.

Speed and memory on a GPU do not depend on what the rows say, and eight billion parameters take minutes on a CPU. A suite
chooses this with `build: benchmarks.generated`; beside what `benchmarks.setting` reads, its setting has `row_tokens` (one
number, or the least and the greatest of a range) and `supervised` (the share of a row that is its answer).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.setting import CHAT_TEMPLATE, SPECIAL, Messages, Setting, encode_line, save_model, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant")
AROUND = 3
"""Tokens of a turn beside its words: its start, its role and its end."""


def build(options: dict[str, Any], data: Path | None, folder: Path) -> Setting:
    """Write a setting folder.

    Args:
        options: the suite's `setting`.
        data: not looked at; every builder is called with it.
        folder: what is written.

    Raises:
        ValueError: rows are too short for two turns, or `supervised` leaves one of them without a word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = word_tokenizer(options["vocab_size"])
    lines = [{"messages": messages} for messages in generate_rows(options)]
    rows = [(line, encode_line(tokenizer, line, sys.maxsize)) for line in lines]
    return write(options, model(options, tokenizer, folder), {"train": rows}, folder)


def model(options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, int]:
    """Write the model, unless a suite before this one left the same; the sizes of `save_model`."""
    import torch

    device, known = "cuda" if torch.cuda.is_available() else "cpu", folder / "model.json"
    wanted = {"device": device, **{key: options[key] for key in ("vocab_size", "shape", "seed")}}
    if known.is_file() and (found := json.loads(known.read_text(encoding="utf-8")))["of"] == wanted:
        return dict(found["sizes"])
    known.unlink(missing_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    tokenizer.save_pretrained(folder / "model")
    sizes = save_model(tokenizer, options, folder / "model", device)
    known.write_text(json.dumps({"of": wanted, "sizes": sizes}) + "\n", encoding="utf-8")
    return sizes


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words w0, w1 ... between spaces, those of the roles, and the special tokens: `vocab_size` in all.

    What is none of them becomes the token of the end of a text. The chat template is that of `benchmarks.setting`, in which
    each word and each mark is one token.

    Raises:
        ValueError: there is no room for a word.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocab_size - len(SPECIAL) - len(ROLES)
    if words < 1:
        raise ValueError(f"Expected a vocab_size above {len(SPECIAL) + len(ROLES)}, got {vocab_size}.")
    names = [*SPECIAL, *ROLES, *(f"w{i}" for i in range(words))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=SPECIAL[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert core.get_vocab_size() == vocab_size, core.get_vocab_size()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # its constructor has no annotations
        tokenizer_object=core, unk_token=SPECIAL[0], eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


def generate_rows(options: dict[str, Any]) -> Iterator[Messages]:
    """`train_rows` conversations of a question and an answer, of exactly `row_tokens` tokens each."""
    rng = random.Random(options["seed"])
    words = options["vocab_size"] - len(SPECIAL) - len(ROLES)
    length = options["row_tokens"]
    least, most = (length, length) if isinstance(length, int) else length
    for _ in range(options["train_rows"]):
        tokens = rng.randint(least, most)
        # The answer's end counts as part of it: a model has to write it, too.
        answer = round(tokens * options["supervised"]) - 1
        question = tokens - answer - 2 * AROUND
        if min(question, answer) < 1:
            raise ValueError(
                f"Expected row_tokens and supervised to leave a word to question and answer, got {tokens} tokens with a share "
                f"of {options['supervised']}."
            )
        yield [
            {"role": role, "content": " ".join(f"w{rng.randrange(words)}" for _ in range(count))}
            for role, count in (("user", question), ("assistant", answer))
        ]
