"""Training from a file that is larger than one wants in memory: seconds to the first step, memory, and the tokenizer alone.

`python -m benchmarks.scale SETTING OUT raw|train`
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.setting import cut_tokenizer, read_rows, save_model

SAMPLE_ROWS = 20_000
BLOCK = 2000


def build(options: dict[str, Any], data: Path, folder: Path) -> None:
    """Write tokenizer, a tiny model, and `rows.jsonl`: long rows of real text, each with a number, until it is large enough."""
    tokenizer = cut_tokenizer(data / options["tokenizer"], options["vocab_size"])
    tokenizer.save_pretrained(folder / "model")
    save_model(tokenizer, options, folder / "model")
    rows = [row for row in read_rows(data / options["rows"]) if len(json.dumps(row).encode()) >= options["row_bytes"]]
    written = count = text = 0
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for question, answer in itertools.cycle(rows):
            if written >= options["megabytes"] * 1_000_000:
                break
            asked = f"{question['content']} (case {count})"
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer["content"]}]
            line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            text += len(str(tokenizer.apply_chat_template(messages, tokenize=False)).encode()) if count < SAMPLE_ROWS else 0
            count += 1
    sample = min(count, SAMPLE_ROWS)
    facts = {**options, "bytes": written, "row_count": count, "text_bytes_per_row": text / sample}
    (folder / "setting.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def raw(folder: Path) -> dict[str, float]:
    """Megabytes of rendered text per second of `encode_batch` alone, on all cores."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line)["messages"] for line in itertools.islice(file, SAMPLE_ROWS)]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows]
    begin = time.perf_counter()
    for start in range(0, len(texts), BLOCK):
        tokenizer.backend_tokenizer.encode_batch(texts[start : start + BLOCK], add_special_tokens=False)
    return {"mb_per_s": sum(len(text.encode()) for text in texts) / 1e6 / (time.perf_counter() - begin)}


class Memory:
    """The greatest memory of this process that no file stands behind (RssAnon), looked at five times a second."""

    def __init__(self) -> None:
        self.first = self.most = self.now()
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> float:
        """In MB."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1000

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.most = max(self.most, self.now())

    def beyond(self) -> float:
        """MB above what there was when the watch began."""
        self._done.set()
        return max(self.most, self.now()) - self.first


def train(folder: Path, out: Path) -> dict[str, float]:
    """A cold start and a few steps; the rate is that of everything before the first forward pass with gradients."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    import lightning_ft
    import lightning_ft.run.session  # imports are not what is measured

    options = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    memory, begin = Memory(), time.perf_counter()
    first: list[float] = []

    def note(module: torch.nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and module.training and not first:
            first.append(time.perf_counter())

    register_module_forward_pre_hook(note)
    lightning_ft.fit(
        model=str(folder / "model"), data=str(folder / "rows.jsonl"), method="full", epochs=1, max_steps=options["steps"],
        max_length=options["max_length"], max_lost=1.0, verdict_rows=0, preflight=False, eval_every=10**9, save_every=0,
        split=[1.0, 0.0], output=str(out / "run"),
    )  # fmt: skip
    text = options["row_count"] * options["text_bytes_per_row"] / 1e6
    return {"mb_per_s": text / (first[0] - begin), "to_first_step_s": first[0] - begin, "beyond_mb": memory.beyond()}


def main() -> None:
    """Measure as the command line says and write `measure.json`."""
    folder, out, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    found = raw(folder) if way == "raw" else train(folder, out)
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
