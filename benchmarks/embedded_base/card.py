"""Puts a trained base model into the package and says what it is: weights in bf16, held-out figures, model card.

Everything is measured through transformers alone, on the bf16 weights that are shipped. Exit code 3 when the held-out bits
per byte are more than `MOST` times those of the 5-gram model over the same tokens (`ngram.json`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MOST = 0.8
LIMIT_MB = 14.0
PROMPTS = {"medquad": 7, "gsm8k": 4, "raschka_instruction": 4, "self_instruct": 2, "pubmedqa": 2, "mbpp": 1}
"""How many held-out prompts of each source are answered in the card: those with the lowest hash."""
Row = dict[str, Any]


def json_lines(path: Path) -> list[Row]:
    """Rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, rows: list[Row], batch: int) -> dict[str, float]:
    """Held-out bits per byte in all (`all`) and by source; the first token of a piece is given, as in `ngram.py`.

    A piece longer than the model's context is scored in parts, the first token of each part being given.
    """
    context = model.config.max_position_embeddings
    spelled = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    sizes = torch.tensor([len(token) for token in spelled])
    parts = []
    for row in rows:
        ids = tokenizer(row["text"], verbose=False)["input_ids"]
        parts += [(row["source"], ids[at : at + context]) for at in range(0, len(ids), context)]
    parts.sort(key=lambda part: len(part[1]))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for at in range(0, len(parts), batch):
        chunk = parts[at : at + batch]
        width = max(len(ids) for _, ids in chunk)
        ids = torch.tensor([ids + [-100] * (width - len(ids)) for _, ids in chunk])
        labels = ids[:, 1:].to(model.device)
        logits = model(input_ids=ids.clamp(min=0).to(model.device)).logits[:, :-1]
        nats = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1).cpu()
        lengths = (sizes[ids[:, 1:].clamp(min=0)] * (ids[:, 1:] >= 0)).sum(1)
        for (source, _), bits, length in zip(chunk, (nats / math.log(2)).tolist(), lengths.tolist(), strict=True):
            for name in ("all", source):
                sums[name][0] += bits
                sums[name][1] += length
    return {name: round(bits / length, 4) for name, (bits, length) in sums.items()}


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, messages: list[Row], longest: int) -> str:
    """The greedy answer to a conversation that ends with the user."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = prompt["input_ids"].to(model.device)
    longest = min(longest, model.config.max_position_embeddings - ids.shape[1])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def held_out_answers(model: Any, tokenizer: Any, rows: list[Row]) -> list[Row]:
    """Prompt, reference and greedy answer of the 20 prompts of the card."""
    answers = []
    for source, number in PROMPTS.items():
        for row in sorted((r for r in rows if r["source"] == source), key=lambda r: r["row"])[:number]:
            user, reference = row["messages"][:2]
            text = answer(model, tokenizer, [user], 96)
            answers.append({"source": source, "prompt": user["content"], "reference": reference["content"], "answer": text})
    return answers


def support_exact_match(model: Any, tokenizer: Any) -> float:
    """Share of the sample data's test rows that the base answers word for word; it must be near 0 to leave room to learn."""
    rows = [r for r in json_lines(ROOT / "lightning_ft" / "assets" / "data" / "support.jsonl") if r["split"] == "test"]
    answers = [answer(model, tokenizer, row["messages"][:1], 64) for row in rows]
    return sum(text == str(row["messages"][1]["content"]) for text, row in zip(answers, rows, strict=True)) / len(rows)


def tokens_seen(tokenizer: Any, data: Path) -> dict[str, int]:
    """Tokens of the training rows times the epochs of both recipes, less the share kept for validation."""
    text = [tokenizer(row["text"], verbose=False)["input_ids"] for row in json_lines(data / "text" / "train.jsonl")]
    chat = [
        tokenizer.apply_chat_template(row["messages"], return_dict=True, verbose=False)["input_ids"]
        for row in json_lines(data / "chat" / "train.jsonl")
    ]
    seen = {}
    for name, rows in (("base", text), ("chat", chat)):
        recipe = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
        cut = sum(min(len(ids), recipe["max_length"]) for ids in rows)
        seen[name] = round(cut * recipe["epochs"] * recipe["split"][0])
    return seen


def sources_table(result: Row) -> str:
    """Licence, held-out bits per byte and those of the 5-gram model, by source."""
    licences = json.loads((HERE / "sources.json").read_text(encoding="utf-8"))
    ours, grams = result["bits_per_byte"], result["five_gram_tokens"]
    lines = ["| source | licence | bits per byte | 5-gram |", "|---|---|---|---|"]
    lines += [f"| {name} | {licences[name]} | {ours[name]:.3f} | {grams[name]:.3f} |" for name in licences]
    return "\n".join([*lines, f"| **all** | | **{ours['all']:.3f}** | **{grams['all']:.3f}** |"])


def quoted(text: str, longest: int = 320) -> str:
    """Text as a Markdown quotation, shortened."""
    text = text if len(text) <= longest else text[:longest].rstrip() + " ..."
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines() or [""])


def card(result: Row) -> str:
    """The model card."""
    shown = "\n\n".join(
        f"**{i}. {a['source']}** {a['prompt'][:320]!r}\n\n{quoted(a['answer'])}" for i, a in enumerate(result["answers"], 1)
    )
    values = {
        "parameters": f"{result['parameters'] / 1e6:.1f}",
        "size": f"{result['megabytes']:.1f}",
        "tokens": f"{sum(result['tokens_seen'].values()) / 1e6:.0f}",
        "bpb": f"{result['bits_per_byte']['all']:.3f}",
        "ratio": f"{result['ratio_to_five_gram_tokens']:.2f}",
        "ratio_bytes": f"{result['ratio_to_five_gram_bytes']:.2f}",
        "support": f"{100 * result['support_exact_match']:.1f}",
        "sources": sources_table(result),
        "answers": shown,
    }
    text = (HERE / "card.md").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def install(model: Any, target: Path) -> float:
    """Write the weights in bf16; their size in MB."""
    model.to(dtype=torch.bfloat16).save_pretrained(target / "new")
    weights = target / "new" / "model.safetensors"
    megabytes = weights.stat().st_size / 1e6
    if megabytes > LIMIT_MB:
        raise SystemExit(f"Expected weights of at most {LIMIT_MB} MB, got {megabytes:.1f} MB.")
    weights.chmod(0o644)
    weights.replace(target / "model.safetensors")
    shutil.rmtree(target / "new")
    return megabytes


def main(argv: list[str] | None = None) -> int:
    """Install, measure, write card and result file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--model", type=Path, required=True, help="trained model folder")
    parser.add_argument("--target", type=Path, default=ROOT / "lightning_ft" / "assets" / "base", help="folder to install into")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of the result file")
    args = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    if AutoTokenizer.from_pretrained(args.model).get_vocab() != tokenizer.get_vocab():
        raise SystemExit(f"Expected {args.model} to have the tokenizer of {args.target}, got another one: train it again.")
    megabytes = install(AutoModelForCausalLM.from_pretrained(args.model), args.target)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The shipped bf16 weights, computed in fp32: what the weights say, not what a device rounds.
    model: Any = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    model.to(device).eval()
    grams = json.loads((HERE / "ngram.json").read_text(encoding="utf-8"))["bits_per_byte"]
    held_out = json_lines(args.data / "text" / "heldout.jsonl")
    ours = bits_per_byte(model, tokenizer, held_out, 64 if device == "cuda" else 8)
    hardware = torch.cuda.get_device_name().replace(" ", "-").lower() if device == "cuda" else "cpu"
    result = {
        "suite": "embedded_base",
        "hardware": hardware,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "parameters": model.num_parameters(),
        "megabytes": megabytes,
        "tokens_seen": tokens_seen(tokenizer, args.data),
        "bits_per_byte": ours,
        "five_gram_tokens": grams["tokens"],
        "five_gram_bytes": grams["bytes"],
        "ratio_to_five_gram_tokens": ours["all"] / grams["tokens"]["all"],
        "ratio_to_five_gram_bytes": ours["all"] / grams["bytes"]["all"],
        "support_exact_match": support_exact_match(model, tokenizer),
        "answers": held_out_answers(model, tokenizer, json_lines(args.data / "chat" / "heldout.jsonl")),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"result_{hardware}_{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.target / "README.md").write_text(card(result), encoding="utf-8")
    print(f"bits per byte {ours['all']:.3f}, {result['ratio_to_five_gram_tokens']:.3f} of the 5-gram model; {path}")
    return 0 if result["ratio_to_five_gram_tokens"] <= MOST else 3


if __name__ == "__main__":
    raise SystemExit(main())
