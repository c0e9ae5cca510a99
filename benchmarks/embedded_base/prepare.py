"""Builds the training and held-out files of the embedded base model from the public text in `--data`.

A unit is one row of its source (a question with its answer, a web page, a section of a book). A unit is held out when the
seeded hash of its key falls into the lowest fifth; the key is the text that must not be seen twice (the answer of a
MedQuAD row, which several questions share), so that copies of one text are always on the same side. Long rows are cut into
pieces, and different rows may share a piece (the same advice under many diseases): pieces of held-out rows that are also
in the training part are not scored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SEED = "lightning-ft-embedded-base-0"
HELD_OUT = 0.2
MAX_CHARS = 1500
"""Longest piece of a document; about 350 tokens, so that pieces fit the model's 512."""
MAX_ANSWER = 1100
"""Longest answer of a chat row; a longer one ends with its last whole sentence before."""
HASHES = Path(__file__).with_name("holdout.sha256")
Turn = dict[str, str]


@dataclass(frozen=True)
class Unit:
    """One row of a source."""

    source: str
    key: str
    """What the hash is made of: equal keys are never on both sides."""
    text: str
    """The row as plain text."""
    messages: tuple[Turn, ...] = ()
    """The row as a conversation; empty where it is not one."""

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of SHA-256 of `seed:source:key`."""
        return hashlib.sha256(f"{SEED}:{self.source}:{self.key}".encode()).hexdigest()[:16]

    @property
    def held_out(self) -> bool:
        """Whether the hash, as a share of its range, is below `HELD_OUT`."""
        return int(self.hash, 16) / 16**16 < HELD_OUT


def clean(text: str) -> str:
    """Text with runs of spaces, padded line ends and more than one empty line removed."""
    text = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")
    text = re.sub(r" *\n *", "\n", re.sub(r"[ \t]+", " ", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def cut(text: str, limit: int = MAX_CHARS) -> list[str]:
    """Pieces of at most `limit` characters, cut at the last paragraph, line, sentence or word that fits."""
    pieces = []
    while len(text) > limit:
        for border in ("\n\n", "\n", ". ", " "):
            at = text.rfind(border, limit // 2, limit)
            if at > 0:
                at += len(border)
                break
        else:
            at = limit
        pieces.append(text[:at].strip())
        text = text[at:].strip()
    return [piece for piece in [*pieces, text] if piece]


def dialogue(user: str, answer: str) -> tuple[Turn, ...]:
    """One question and its answer, the answer cut to what fits."""
    return ({"role": "user", "content": cut(user, 700)[0]}, {"role": "assistant", "content": cut(answer, MAX_ANSWER)[0]})


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def question_units(source: str, rows: Iterator[tuple[str, str]], *, key_is_answer: bool = False) -> Iterator[Unit]:
    """Units of question and answer pairs; the first of several with the same key and question is kept."""
    seen = set()
    for question, answer in ((clean(q), clean(a)) for q, a in rows):
        if question and answer and (question, answer) not in seen:
            seen.add((question, answer))
            key = answer if key_is_answer else f"{question}\n{answer}"
            yield Unit(source, key, f"{question}\n{answer}", dialogue(question, answer))


def medquad(data: Path) -> Iterator[Unit]:
    """Medical questions with long answers; texts that answer several questions are kept once."""
    seen, rows = set(), []
    for row in json_lines(data / "medquad" / "medquad.jsonl"):
        if row["answer"] not in seen:
            seen.add(row["answer"])
            rows.append((row["question"].replace("What is (are)", "What is").replace(" ?", "?"), row["answer"]))
    return question_units("medquad", iter(rows), key_is_answer=True)


def gsm8k(data: Path) -> Iterator[Unit]:
    """Worked school maths; the calculator's marks `<<...>>` are left out, the final `#### 7` stays."""
    rows = json_lines(data / "gsm8k" / "train.jsonl")
    return question_units("gsm8k", ((r["question"], re.sub(r"<<.*?>>", "", r["answer"])) for r in rows))


def raschka(data: Path) -> Iterator[Unit]:
    """Clean instructions with an optional input."""
    rows = json.loads((data / "raschka_instruction" / "instruction-data.json").read_text(encoding="utf-8"))
    return question_units("raschka_instruction", ((f"{r['instruction']}\n{r['input']}", r["output"]) for r in rows))


def self_instruct(data: Path) -> Iterator[Unit]:
    """Hand-written seed tasks, one unit for each instance."""
    rows = json_lines(data / "self_instruct" / "seed_tasks.jsonl")
    pairs = ((f"{r['instruction']}\n{i['input']}", i["output"]) for r in rows for i in r["instances"])
    return question_units("self_instruct", pairs)


def mbpp(data: Path) -> Iterator[Unit]:
    """Python problems with their reference code, its indentation untouched."""
    for row in json_lines(data / "mbpp" / "mbpp.jsonl"):
        question, code = clean(row["text"]), row["code"].replace("\r\n", "\n").expandtabs(4).strip()
        yield Unit("mbpp", f"{question}\n{code}", f"{question}\n{code}", dialogue(question, code))


def pubmedqa(data: Path) -> Iterator[Unit]:
    """Abstracts, and their question with its conclusion."""
    for row in json.loads((data / "pubmedqa" / "pubmedqa.json").read_text(encoding="utf-8")).values():
        question, answer = clean(row["QUESTION"]), clean(row["LONG_ANSWER"])
        text = "\n".join([question, *(clean(c) for c in row["CONTEXTS"]), answer])
        yield Unit("pubmedqa", text, text, dialogue(question, answer))


def clinc(data: Path) -> Iterator[Unit]:
    """Short requests with their intent (training part only); raw text only, a label is no chat answer."""
    rows = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))["train"]
    for text, intent in rows:
        yield Unit("clinc150", clean(text), f"Customer: {clean(text)}\nIntent: {intent.replace('_', ' ')}")


def oasst(data: Path) -> Iterator[Unit]:
    """Conversation trees, along the best-ranked reply, at most two questions deep."""
    for row in json_lines(data / "oasst_trees" / "trees.jsonl"):
        node, path = row["prompt"], [row["prompt"]]
        while node.get("replies") and len(path) < 4:
            node = min(node["replies"], key=lambda r: r["rank"] if isinstance(r.get("rank"), int) else 99)
            path.append(node)
        path = path[: len(path) // 2 * 2]
        turns = [clean(node["text"]) for node in path]
        if turns and all(turns):
            pairs = [dialogue(turns[i], turns[i + 1]) for i in range(0, len(turns), 2)]
            yield Unit("oasst", turns[0], "\n".join(turns), tuple(turn for pair in pairs for turn in pair))


def c4(data: Path) -> Iterator[Unit]:
    """Web pages."""
    for row in json_lines(data / "llamafactory_demo" / "c4_demo.jsonl"):
        yield Unit("c4", clean(row["text"]), clean(row["text"]))


def books(data: Path) -> Iterator[Unit]:
    """English books, one unit for each section of `MAX_CHARS`; the publisher's licence text is left out."""
    for name in ("tinyshakespeare.txt", "botchan_en.txt", "the-verdict_en.txt"):
        text = (data / "text_corpora" / name).read_text(encoding="utf-8")
        start, end = re.search(r"\*\*\* START OF[^\n]*\n", text), re.search(r"\nEnd of Project Gutenberg", text)
        text = text[start.end() if start else 0 : end.start() if end else len(text)]
        for piece in cut(clean(text)):
            yield Unit(name.split(".")[0], piece, piece)


SOURCES: tuple[Callable[[Path], Iterator[Unit]], ...] = (
    medquad, gsm8k, raschka, self_instruct, mbpp, pubmedqa, clinc, oasst, c4, books,
)  # fmt: skip


def units(data: Path) -> list[Unit]:
    """All units of all sources, in a fixed order."""
    return [unit for source in SOURCES for unit in source(data)]


def text_rows(chosen: Iterable[Unit]) -> Iterator[dict[str, Any]]:
    """Rows of raw text: each unit's text in pieces."""
    for unit in chosen:
        for piece in cut(unit.text):
            yield {"text": piece, "source": unit.source, "row": unit.hash}


def chat_rows(chosen: Iterable[Unit]) -> Iterator[dict[str, Any]]:
    """Rows of conversations."""
    for unit in chosen:
        if unit.messages:
            yield {"messages": list(unit.messages), "source": unit.source, "row": unit.hash}


def content(row: dict[str, Any]) -> str:
    """What no training row and held-out row share: its text, or the whole conversation."""
    return row["text"] if "text" in row else "\n".join(turn["content"] for turn in row["messages"])


def holdout_lines(everything: list[Unit]) -> list[str]:
    """`source hash` of every unit held out, sorted and without repetition."""
    return sorted({f"{unit.source} {unit.hash}" for unit in everything if unit.held_out})


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write the rows as JSON lines; what was written, in words."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{path}: {len(lines)} rows, {path.stat().st_size / 1e6:.1f} MB"


def main(argv: list[str] | None = None) -> int:
    """Write `text/` and `chat/` with `train.jsonl` and `heldout.jsonl` below `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public sources")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--write-hashes", action="store_true", help=f"renew {HASHES.name} instead of checking it")
    args = parser.parse_args(argv)
    everything = units(args.data)
    lines = holdout_lines(everything)
    if args.write_hashes:
        HASHES.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif HASHES.read_text(encoding="utf-8").split("\n")[:-1] != lines:
        print(f"Expected the held-out rows of {HASHES.name}, got others: the sources in {args.data} differ.", file=sys.stderr)
        return 3
    for kind, rows_of in (("text", text_rows), ("chat", chat_rows)):
        trained = list(rows_of(unit for unit in everything if not unit.held_out))
        seen = {content(row) for row in trained}
        kept = [row for row in rows_of(unit for unit in everything if unit.held_out) if content(row) not in seen]
        print(write(args.output / kind / "train.jsonl", trained))
        print(write(args.output / kind / "heldout.jsonl", kept))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
