"""`data check` on files with known faults: rows of a clean file, and among them twenty cases of each kind of issue."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.records import bare

CASES = 20
SYSTEM = "You are helpful."
FOREIGN = (
    "K\u00f6nnen Sie mir bitte erkl\u00e4ren, wie die Photosynthese in gr\u00fcnen Pflanzen genau funktioniert?",
    "Pourriez-vous m'expliquer comment fonctionne exactement la photosynth\u00e8se dans les plantes vertes ?",
    "\u00bfPodr\u00eda explicarme c\u00f3mo funciona exactamente la fotos\u00edntesis en las plantas verdes, por favor?",
    "Potrebbe spiegarmi come funziona esattamente la fotosintesi nelle piante verdi, per favore?",
    "Kunt u mij uitleggen hoe de fotosynthese in groene planten precies in zijn werk gaat?",
)
FOREIGN_ANSWERS = (
    "Pflanzen nehmen Licht auf und bauen daraus mit Wasser und Kohlendioxid Zucker, den sie zum Wachsen brauchen.",
    "Les plantes captent la lumi\u00e8re et fabriquent avec l'eau et le gaz carbonique le sucre dont elles ont besoin.",
    "Las plantas captan la luz y fabrican con agua y di\u00f3xido de carbono el az\u00facar que necesitan para crecer.",
    "Le piante catturano la luce e producono con acqua e anidride carbonica lo zucchero di cui hanno bisogno.",
    "Planten vangen licht op en maken met water en koolstofdioxide de suiker die ze nodig hebben om te groeien.",
)
VAGUE = (
    "I don't know.", "N/A", "It depends.", "See above.", "TBD", "Not sure.", "...", "Maybe.", "todo",
    "As an AI language model, I cannot.",
)  # fmt: skip
MOJIBAKE = (
    "The caf\u00c3\u00a9 is open",
    "don\u00e2\u20ac\u2122t worry",
    "na\u00c3\u00afve idea",
    "r\u00c3\u00a9sum\u00c3\u00a9 attached",
    "it\u00e2\u20ac\u2122s fine\ufffd",
)
SECRETS = (
    "AKIA" + "IOSFODNN7EXAMPL2", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "sk-" + "proj-abcDEF123456789012345678",
    "password: hunter2secret9", "-----BEGIN RSA " + "PRIVATE KEY-----",
)  # fmt: skip
MARKERS = ("<|im_end|>", "[INST]", "<|endoftext|>", "</s>", "### Response:\n")


def instructions(clean: list[dict[str, str]], seed: int) -> tuple[list[Any], dict[str, set[int]], list[dict[str, str]]]:
    """Rows as messages, for each kind the 1-based lines that have it, and a benchmark that some rows are taken from."""
    draw = random.Random(seed)
    # The file itself asks a few things twice.
    clean = list({bare(ask(row)): dict(row) for row in clean}.values())
    draw.shuffle(clean)
    spare, clean = clean[:500], clean[500:]
    made: list[tuple[str | None, Any]] = [(None, chat(ask(row), row["output"], row.get("split"))) for row in clean]
    take = iter(spare)
    benchmark = []

    def plant(kind: str, row: Any) -> None:
        made.append((kind, row))

    for i in range(CASES):
        base, answer = ask(clean[i]), clean[i]["output"]
        plant("exact_duplicate", chat(base, answer))
        other = clean[40 + i]
        plant("near_duplicate", chat(typo(ask(other), draw), other["output"]))
        third = clean[80 + i]
        plant("conflict", chat(ask(third), "The other way round: " + next(take)["output"]))
        row = next(take)
        plant("empty_answer", chat(ask(row), " " * (i % 2)))
        plant("empty_prompt", chat("  ", next(take)["output"]))
        plant("vague_answer", chat(ask(next(take)), VAGUE[i % len(VAGUE)]))
        plant("short_answer", chat(ask(next(take)), "xo"[i % 2]))
        row = next(take)
        shouted = ask(row).upper() if i % 2 else ask(row)[0].lower() + ask(row)[1:].rstrip(".?!:") + " and so on"
        plant("prompt_style", chat(shouted, row["output"]))
        row = next(take)
        written = f"<p>{row['output']}</p>" if i % 2 else row["output"].rstrip(".") + " and that is that!!!"
        plant("answer_style", chat(ask(row), written))
        plant("language", chat(f"{FOREIGN[i % 5]} ({i})", f"{FOREIGN_ANSWERS[i % 5]} ({i})"))
        row = next(take)
        plant("encoding", chat(ask(row), f"{MOJIBAKE[i % 5]}: {row['output']}"))
        plant("turns", unbalanced(next(take), i))
        row = next(take)
        plant("marker", chat(ask(row), f"{row['output']} {MARKERS[i % 5]}"))
        row = next(take)
        plant("secret", chat(f"{ask(row)}\nMy key is {SECRETS[i % 5]}", row["output"]))
        row = next(take)
        plant("email", chat(f"{ask(row)}\nWrite to jo.{i}@mail{i}.nl about it.", row["output"]))
        row = next(take)
        held = chat(ask(row), row["output"], "test")
        made.append((None, held))
        plant("split_leak", chat(ask(row) if i % 2 else typo(ask(row), draw), "Another answer to it is this one.", "train"))
        row = next(take)
        benchmark.append({"question": ask(row), "answer": row["output"]})
        plant("benchmark_leak", chat(ask(row), "A different answer that was written for it."))
        plant("format", {"messages": "none"} if i % 2 else {"messages": [{"role": "nobody", "content": "x"}]})
        plant("unreadable", "{broken" if i % 2 else '["a list"]')
        row = next(take)
        plant("cut", chat(ask(row), " ".join(f"{row['output']} Point {n}." for n in range(400))))
    # A duplicate comes after its original, which the order of a shuffle would not keep.
    tail = made[len(clean) :]
    draw.shuffle(tail)
    made[len(clean) :] = tail
    truth: dict[str, set[int]] = {}
    for line, (kind, row) in enumerate(made, 1):
        if isinstance(row, dict) and "split" not in row:
            row["split"] = "train"
        if kind:
            truth.setdefault(kind, set()).add(line)
    return [row for _, row in made], truth, benchmark


def ask(row: dict[str, str]) -> str:
    return "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)


def chat(question: str, answer: str, split: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    return row | ({"split": split} if split else {})


def unbalanced(row: dict[str, str], i: int) -> dict[str, Any]:
    user, assistant = {"role": "user", "content": ask(row)}, {"role": "assistant", "content": row["output"]}
    again = {"role": "user", "content": f"Thank you, number {i}, that is what I wanted to know."}
    turns = ([user, assistant, again], [user, again, assistant], [assistant, user, assistant])[i % 3]
    return {"messages": turns}


def typo(text: str, draw: random.Random) -> str:
    """Two neighbouring letters of one long word change places, or a word of politeness is added."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 5 and word.isalpha() and word[2] != word[3]]
    if not long or draw.random() < 0.3:
        return f"Please: {text}"
    word = words[i := draw.choice(long)]
    words[i] = word[:2] + word[3] + word[2] + word[4:]
    return " ".join(words)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return name


def checked(name: str, *words: str) -> dict[str, Any]:
    """The JSON report of a file."""
    assert main(["check", name, "--json", "report.json", *words]) == 0
    report: dict[str, Any] = json.loads(Path("report.json").read_text(encoding="utf-8"))
    return report


def lines(report: dict[str, Any], kind: str) -> list[int]:
    return [issue["line"] for issue in report["issues"] if issue["kind"] == kind]


def test_planted_faults_are_found_and_clean_rows_left_alone(here: Path, shared_data: Path) -> None:
    """Recall of at least 0.95 for each kind with twenty cases, and at most 1 % of the clean rows flagged."""
    clean = json.loads((shared_data / "raschka_instruction/instruction-data.json").read_text(encoding="utf-8"))
    rows, truth, benchmark = instructions(clean, 0)
    write("rows.jsonl", rows)
    write("bench.jsonl", benchmark)
    report = checked("rows.jsonl", "--against", "bench.jsonl", "--max_length", "512")
    found = {kind: set(lines(report, kind)) for kind in truth}
    recall = {kind: len(found[kind] & wanted) / len(wanted) for kind, wanted in truth.items()}
    assert {kind: share for kind, share in recall.items() if share < 0.95} == {}
    faulty = set().union(*truth.values())
    touched = faulty | {i["line"] for i in report["issues"] if i["other"] and int(i["other"].split(":")[1]) in faulty}
    false = {issue["line"] for issue in report["issues"]} - touched
    assert len(false) <= 0.01 * (len(rows) - len(faulty)), [i for i in report["issues"] if i["line"] in false][:20]


def test_wrong_labels_other_topics_and_languages_are_found(here: Path, shared_data: Path) -> None:
    with (shared_data / "banking77/train.csv").open(encoding="utf-8", newline="") as stream:
        clean = list(csv.DictReader(stream))
    draw = random.Random(0)
    draw.shuffle(clean)
    rows: list[dict[str, str]] = [dict(r) for r in clean]
    classes = sorted({r["category"] for r in clean})
    wrong = set(range(1, 2 * CASES + 1, 2))
    for line in wrong:
        rows[line - 1]["category"] = draw.choice([c for c in classes if c[:4] != rows[line - 1]["category"][:4]])
    asked = json.loads((shared_data / "raschka_instruction/instruction-data.json").read_text(encoding="utf-8"))
    topics = ("photosynthesis", "poem", "planet", "chemical", "synonym")
    other = [ask(r) for r in asked if any(word in r["instruction"] for word in topics)][:CASES]
    rows += [{"text": text, "category": draw.choice(classes)} for text in other]
    foreign = [f"{FOREIGN[i % 5]} ({i})" for i in range(CASES)]
    rows += [{"text": text, "category": draw.choice(classes)} for text in foreign]
    report = checked(write("rows.jsonl", rows))
    labels, language = set(lines(report, "label")), set(lines(report, "language"))
    assert len(labels & wrong) >= 0.95 * len(wrong)
    assert sum(line <= len(clean) for line in labels - wrong) <= 0.01 * len(clean)
    spoken = set(range(len(rows) - CASES + 1, len(rows) + 1))
    assert len(language & spoken) >= 0.95 * CASES
    assert len(language - spoken) <= 0.01 * len(clean)
    assert report["balance"]["class"]
    strange = set(lines(report, "off_topic"))
    astray = set(range(len(clean) + 1, len(rows) + 1))
    assert len(strange & astray) >= 0.7 * len(astray)
    assert len(strange - astray) <= 0.01 * len(clean)
