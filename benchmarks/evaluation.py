"""What an evaluation costs: likelihoods against the bare forward pass, answers against one prompt at a time.

`python -m benchmarks.evaluation SETTING OUT likelihoods|generation`
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.setting import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TURNS = 2
"""How often each side is measured, in turn."""
PROMPTS, NEW_TOKENS = 64, 48
BATCH_TOKENS = 8192


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def likelihoods(setting: Setting) -> dict[str, float]:
    """`score_examples` with likelihoods alone, tokenising included, against the model's logits of the same padded batches."""
    import torch

    from lightning_ft.data.collate import pad
    from lightning_ft.data.encode import Encoder
    from lightning_ft.decoding import Sampling
    from lightning_ft.generation import batches_by_length
    from lightning_ft.likelihood import Loss
    from lightning_ft.loading import load
    from lightning_ft.scoring import score_examples
    from lightning_ft.types import Conversation, Message

    loaded = load(setting.model)
    encoder = Encoder(loaded.tokenizer, loaded.template, setting.options["max_length"])
    examples = [Conversation(tuple(Message(turn["role"], turn["content"]) for turn in row)) for row in setting.rows("heldout")]
    ids = [f"heldout:{i}" for i in range(len(examples))]
    encoded = encoder.encode(examples, ids)
    batches = [
        pad([encoded[i] for i in members], loaded.tokenizer.pad_token_id or 0)
        for members in batches_by_length([len(item.input_ids) for item in encoded], BATCH_TOKENS)
    ]

    def ours() -> None:
        score_examples(
            loaded.model, encoder, loaded.template, loaded.tokenizer, examples, ids, metrics=[Loss], sampling=Sampling(),
            batch_tokens=BATCH_TOKENS,
        )  # fmt: skip

    def forward() -> None:
        for batch in batches:
            real = torch.arange(batch.input_ids.shape[1]) < torch.tensor(batch.lengths)[:, None]
            loaded.model(input_ids=batch.input_ids, attention_mask=real.long())

    with torch.no_grad():
        loaded.model(input_ids=batches[-1].input_ids)  # what is compiled or allocated once
        pairs = [(seconds(ours), seconds(forward)) for _ in range(TURNS)]
    return {
        "rows": len(examples),
        "ours_s": statistics.median(a for a, _ in pairs), "forward_s": statistics.median(b for _, b in pairs),
        "over_forward": statistics.median(a / b for a, b in pairs),
    }  # fmt: skip


def generation(setting: Setting) -> dict[str, float]:
    """`generate_texts` of all prompts against transformers' `generate` of one after the other."""
    import torch

    from lightning_ft.decoding import Sampling, decode
    from lightning_ft.generation import generate_texts
    from lightning_ft.loading import load
    from lightning_ft.types import Message

    loaded = load(setting.model, dtype=torch.float32)
    rows = setting.rows("heldout")[:PROMPTS]
    prompts = [loaded.template.prompt([Message(turn["role"], turn["content"]) for turn in row[:-1]]) for row in rows]
    answers: dict[str, list[str]] = {}

    def ours() -> None:
        sampling = Sampling(max_new_tokens=NEW_TOKENS)
        answers["ours"] = generate_texts(
            loaded.model, loaded.tokenizer, prompts, sampling, stop_tokens=loaded.stop_tokens, batch_tokens=BATCH_TOKENS
        )

    def naive() -> None:
        answers["naive"] = []
        for prompt in prompts:
            ids = torch.tensor([loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
            out = loaded.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
                eos_token_id=list(loaded.stop_tokens), pad_token_id=loaded.tokenizer.pad_token_id,
            )  # fmt: skip
            new = out[0, ids.shape[1] :].tolist()
            end = next((i for i, token in enumerate(new) if token in loaded.stop_tokens), len(new))
            answers["naive"].append(decode(loaded.tokenizer, new[:end]))

    with torch.no_grad():
        pairs = [(seconds(ours), seconds(naive)) for _ in range(TURNS)]
    equal = sum(a == b for a, b in zip(answers["ours"], answers["naive"], strict=True))
    return {
        "rows": len(prompts),
        "ours_s": statistics.median(a for a, _ in pairs), "naive_s": statistics.median(b for _, b in pairs),
        "gain": statistics.median(b / a for a, b in pairs), "same": equal / len(prompts),
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Measure and write `measure.json`."""
    setting, out, what = Setting.load(argv[0]), Path(argv[1]), argv[2]
    found = {"likelihoods": likelihoods, "generation": generation}[what](setting)
    (out / "measure.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
