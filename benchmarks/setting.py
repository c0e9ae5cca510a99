"""The training setting of a suite: model, tokenizer and rows, built from a seed and from public data, equal for everybody.

A setting folder holds `model/` (a Llama shape with seeded random weights in bfloat16, and a real byte-pair tokenizer cut
to the vocabulary), `train.jsonl` and `heldout.jsonl` (a `Line` per line: conversations or, where the setting says `pairs`,
preference pairs) and `setting.json`.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

IGNORE_INDEX = -100
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
# Nothing follows a turn's stop token, so that every framework's idea of "the answer" ends at the same token.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Messages = list[dict[str, str]]
Line = dict[str, Messages]
"""A conversation, `messages`; or a pair: `messages` before the answers, the better one `chosen`, the worse one `rejected`."""
Encoded = dict[str, list[int]]
"""`input_ids` and `labels` of a text."""
Row = tuple[Line, list[Encoded]]
"""A line, and what its texts are encoded to."""


@dataclass(frozen=True)
class Setting:
    """What every contestant reads."""

    folder: Path
    options: dict[str, Any]
    """The suite's `setting` with the numbers that were counted while it was built (`train_tokens`, `parameters` ...)."""

    @classmethod
    def load(cls, folder: str | Path) -> Setting:
        """The setting that `build` wrote to a folder."""
        return cls(Path(folder), json.loads((Path(folder) / "setting.json").read_text(encoding="utf-8")))

    @property
    def model(self) -> str:
        """The model folder."""
        return str(self.folder / "model")

    @property
    def pairs(self) -> bool:
        """Whether rows are preference pairs."""
        return bool(self.options.get("pairs"))

    def lines(self, part: str) -> list[Line]:
        """The rows of `train` or `heldout` as they are written."""
        return [json.loads(line) for line in (self.folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]

    def rows(self, part: str) -> list[Messages]:
        """The conversations of `train` or `heldout`."""
        return [line["messages"] for line in self.lines(part)]

    def encoded(self, part: str, tokenizer: Any) -> list[Encoded]:
        """The texts of all rows, the answer with its stop token supervised, cut at `max_length`."""
        return [text for line in self.lines(part) for text in encode_line(tokenizer, line, self.options["max_length"])]

    def encoded_pairs(self, part: str, tokenizer: Any) -> list[tuple[Encoded, Encoded]]:
        """The text with the better and that with the worse answer of every pair."""
        texts = self.encoded(part, tokenizer)
        return list(zip(texts[::2], texts[1::2], strict=True))


def encode_line(tokenizer: Any, line: Line, max_length: int) -> list[Encoded]:
    """The conversation of a line; of a pair two, that with the better answer first."""
    answers = [line[side] for side in ("chosen", "rejected")] if "chosen" in line else [[]]
    return [encode(tokenizer, line["messages"] + answer, max_length) for answer in answers]


def encode(tokenizer: Any, messages: Messages, max_length: int) -> Encoded:
    """Token ids of prompt and answer, and labels that are `IGNORE_INDEX` on the prompt."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(messages, return_dict=False)[:max_length]
    return {"input_ids": ids, "labels": ([IGNORE_INDEX] * len(prompt) + ids[len(prompt) :])[:max_length]}


def build(options: dict[str, Any], data: Path, folder: Path) -> Setting:
    """Write a setting folder.

    Args:
        options: the suite's `setting`.
        data: the folder of public data sets.
        folder: what is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = cut_tokenizer(data / options["tokenizer"], options["vocab_size"])
    rows = select_rows(tokenizer, options, data / options["data"])
    tokenizer.save_pretrained(folder / "model")
    sizes = save_model(tokenizer, options, folder / "model")
    return write(options, sizes, {"train": rows[: options["train_rows"]], "heldout": rows[options["train_rows"] :]}, folder)


def write(options: dict[str, Any], sizes: dict[str, int], parts: dict[str, list[Row]], folder: Path) -> Setting:
    """Write the rows, and `setting.json` with what was counted.

    Args:
        options: the suite's `setting`.
        sizes: of the model, as `save_model` returns them.
        parts: the rows of each file.
        folder: what is written.
    """
    facts: dict[str, Any] = dict(sizes)
    for part, chosen in parts.items():
        lines = [json.dumps(line, ensure_ascii=False) for line, _ in chosen]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        texts = [text for _, encoded in chosen for text in encoded]
        facts[f"{part}_tokens"] = sum(len(text["input_ids"]) for text in texts)
        facts[f"{part}_supervised_tokens"] = sum(label != IGNORE_INDEX for text in texts for label in text["labels"])
    setting = Setting(folder, {**options, **facts})
    (folder / "setting.json").write_text(json.dumps(setting.options, indent=1) + "\n", encoding="utf-8")
    return setting


def cut_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """GPT-2's byte-pair tokenizer with only as many merges as fit: the ids of a merge table are its ranks.

    256 bytes, `vocab_size - 256 - 4` merges and four special tokens make exactly `vocab_size`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    whole: dict[str, int] = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    size = vocab_size - len(SPECIAL)
    vocab = {token: i for token, i in whole.items() if i < size}
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in (line.split() for line in lines if line)][: size - 256]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    assert core.get_vocab_size() == vocab_size, core.get_vocab_size()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # its constructor has no annotations
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def save_model(
    tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], folder: Path, device: str = "cpu"
) -> dict[str, int]:
    """Write a Llama with seeded random weights in bfloat16, as most published models are stored.

    Returns:
        `parameters`, and those of its matrix products, `product_parameters`: all but the input embedding and the norms. An
        output head that is tied to the embedding is in both.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"max_position_embeddings": 2048, "tie_word_embeddings": True, **options["shape"]}
    config = LlamaConfig(
        vocab_size=options["vocab_size"], bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    torch.manual_seed(options["seed"])
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]  # nn.Module.to is overloaded oddly there
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return {"parameters": sum(p.numel() for p in model.parameters()), "product_parameters": products}


def select_rows(tokenizer: Any, options: dict[str, Any], path: Path) -> list[Row]:
    """`train_rows + heldout_rows` rows whose texts all fit into `max_length` uncut, in a seeded random order."""
    wanted = options["train_rows"] + options["heldout_rows"]
    lines = list(read_pairs(path)) if options.get("pairs") else [{"messages": messages} for messages in read_rows(path)]
    random.Random(options["seed"]).shuffle(lines)
    rows: list[Row] = []
    for line in lines:
        encoded = encode_line(tokenizer, line, sys.maxsize)
        if max(len(text["input_ids"]) for text in encoded) <= options["max_length"]:
            rows.append((line, encoded))
        if len(rows) == wanted:
            return rows
    raise ValueError(f"Expected {wanted} rows of at most {options['max_length']} tokens in {path}, found {len(rows)}.")


def read_rows(path: Path) -> Iterator[Messages]:
    """The rows of an instruction file (JSON list or JSON lines; instruction, input, output or question, answer)."""
    for row in read_json(path):
        question, answer = question_of(row), (row.get("output") or row.get("answer", "")).strip()
        if question and answer:
            yield [turn("user", question), turn("assistant", answer)]


def read_pairs(path: Path) -> Iterator[Line]:
    """The pairs of such a file with chosen and rejected for its answers; those that are the same say nothing."""
    for row in read_json(path):
        question, chosen, rejected = question_of(row), row["chosen"].strip(), row["rejected"].strip()
        if question and chosen and rejected and chosen != rejected:
            yield {
                "messages": [turn("user", question)],
                "chosen": [turn("assistant", chosen)],
                "rejected": [turn("assistant", rejected)],
            }


def read_json(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    )
    return rows


def question_of(row: dict[str, Any]) -> str:
    """Instruction and input, or the question."""
    return "\n".join(part.strip() for part in (row.get("instruction") or row["question"], row.get("input", "")) if part)


def turn(role: str, content: str) -> dict[str, str]:
    """A turn of a conversation."""
    return {"role": role, "content": content}


if __name__ == "__main__":
    build(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
