"""One measurement of tokenising in a fresh process: the tokenizer alone, our encoder, or a whole preparation of rows.

`python -m benchmarks.tokenise SETTING OUT raw|ours|prepare long|short|rows`
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.setting import CHAT_TEMPLATE, Messages, cut_tokenizer, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOCK = 2000
"""Rows at a time, as the product has it."""


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write the tokenizer and three files of rows: `long`, `short` and `rows` (for the start from the cache)."""
    cut_tokenizer(data / options["tokenizer"], options["vocab_size"]).save_pretrained(folder / "model")
    long = list(read_rows(data / options["long"]))
    parts = {
        "long": [row for row in long if len(json.dumps(row).encode()) >= options["long_bytes"]],
        "short": list(read_rows(data / options["short"])),
        "rows": list(itertools.islice(itertools.cycle(long), options["rows"])),
    }
    facts = dict(options)
    for name, rows in parts.items():
        lines = [json.dumps({"messages": row}, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        facts[f"{name}_rows"], facts[f"{name}_mean_bytes"] = len(rows), sum(len(line.encode()) for line in lines) / len(rows)
    (folder / "setting.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def rate(work: Callable[[Sequence[Any]], Any], items: Sequence[Any], texts: Sequence[str], least_s: float) -> dict[str, float]:
    """Megabytes of rendered text per second over as many passes as `least_s` seconds take; the first pass does not count."""
    blocks = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
    for block in blocks:
        work(block)
    passes, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < least_s:
        for block in blocks:
            work(block)
        passes += 1
    seconds = (time.perf_counter() - begin) / passes
    return {"mb_per_s": sum(len(text.encode()) for text in texts) / 1e6 / seconds, "rows_per_s": len(texts) / seconds}


def measure(folder: Path, way: str, part: str) -> dict[str, float]:
    """The numbers of one way on one file."""
    from transformers import AutoTokenizer

    options = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    file = folder / f"{part}.jsonl"
    if way == "prepare":
        return prepare(folder, file, tokenizer, options["max_length"])
    rows: list[Messages] = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    texts: list[str] = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows]
    if way == "raw":
        backend = tokenizer.backend_tokenizer
        return rate(lambda block: backend.encode_batch(block, add_special_tokens=False), texts, texts, options["least_s"])
    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.types import Conversation, Message

    assert tokenizer.chat_template == CHAT_TEMPLATE
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), options["max_length"])
    examples = [Conversation(tuple(Message(m["role"], m["content"]) for m in messages)) for messages in rows]
    names = [f"{part}:{i}" for i in range(BLOCK)]
    return rate(lambda block: encoder.encode(block, names[: len(block)]), examples, texts, options["least_s"])


def prepare(folder: Path, file: Path, tokenizer: Any, max_length: int) -> dict[str, float]:
    """Seconds of everything that `fit` does with its data before training: read, check, split, encode, account, cache."""
    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.pipeline import Pipeline
    from lightning_ft.data.render import Template
    from lightning_ft.registry import registry
    from lightning_ft.types import Conversation

    config = TrainingConfig(model=str(folder / "model"), data=[str(file)], max_length=max_length, max_lost=1.0)
    known = registry()
    begin = time.perf_counter()
    encoder = Encoder(tokenizer, Template.resolve("auto", tokenizer), max_length)
    prepared = Pipeline(config, known, encoder, None, (Conversation,), lambda line: print(line, file=sys.stderr)).prepare()
    seconds = time.perf_counter() - begin
    return {"prepare_s": seconds, "rows": float(prepared.ledger.total.read)}


def main() -> None:
    """Measure as the command line says and write `measure.json`."""
    folder, out, way, part = sys.argv[1:5]
    (Path(out) / "measure.json").write_text(json.dumps(measure(Path(folder), way, part)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
