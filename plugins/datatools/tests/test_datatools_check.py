from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.checks.text import check_secrets
from lightning_ft_datatools.command import main
from lightning_ft_datatools.findings import KINDS
from lightning_ft_datatools.records import Record, bare

from lightning_ft.types import Conversation, Message, Row

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

GOOD = (
    ("Where does the sun rise?", "It rises in the east, as the earth turns that way."),
    ("Name a fruit that is red.", "Strawberries are red when they are ripe enough to eat."),
    ("How many legs has a spider?", "A spider has eight legs, two more than any insect."),
    ("Who wrote Hamlet?", "William Shakespeare wrote it, probably around the year 1600."),
    ("What do bees make?", "They make honey from nectar, and wax for their combs."),
    ("Why is the sea salty?", "Rivers carry salts from rocks into it, and only the water evaporates."),
)


def row(question: str, answer: str, **further: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **further}


def checked(name: str, *words: str) -> dict[str, Any]:
    """The JSON report of a file."""
    assert main(["check", name, "--json", "report.json", *words]) == 0
    report: dict[str, Any] = json.loads(Path("report.json").read_text(encoding="utf-8"))
    return report


def lines(report: dict[str, Any], kind: str) -> list[int]:
    return [issue["line"] for issue in report["issues"] if issue["kind"] == kind]


def pair(better: str, worse: str) -> dict[str, str]:
    return {"prompt": f"What is on its head, {better} or {worse}?", "chosen": f"It is {better}.", "rejected": f"It is {worse}."}


CASES: dict[str, tuple[list[Any], list[int]]] = {
    "unreadable": ([row(*GOOD[0]), "{broken", row(*GOOD[1])], [2]),
    "format": ([row(*GOOD[0]), {"question": 7, "answer": "x"}, row(*GOOD[1])], [2]),
    "empty_prompt": ([row(*GOOD[0]), row("  ", "An answer to nothing at all.")], [2]),
    "empty_answer": ([row(*GOOD[0]), row("Anything else?", "")], [2]),
    "vague_answer": ([row(*GOOD[0]), row("Who was she?", "I don't know."), row(*GOOD[1])], [2]),
    "short_answer": ([*(row(*pair) for pair in GOOD), row("What is the end?", "z")], [7]),
    "exact_duplicate": ([row(*GOOD[0]), row(*GOOD[1]), row("Where  does THE sun rise?", GOOD[0][1])], [3]),
    "near_duplicate": ([row(*GOOD[5]), row(*GOOD[1]), row("Why is the sea so salty?", GOOD[5][1])], [3]),
    "conflict": ([row(*GOOD[0]), row(*GOOD[1]), row(GOOD[0][0], "In the west, of course.")], [3]),
    "same_answers": ([pair("a hat", "a cap"), pair("a hat", "a hat"), pair("a hat", "A hat")], [2]),
    "encoding": (
        [row(*GOOD[0]), row("Where is the caf\u00c3\u00a9?", "It is over there."), row("Bell\x07?", "Yes, it rings.")], [2, 3],
    ),
    "marker": ([row(*GOOD[0]), row("Say it.", "I say it.<|im_end|>"), row("Now?", "[INST] now, please.")], [2, 3]),
    "secret": ([row(*GOOD[0]), row("My key is AKIA" + "ABCDEFGHIJKLMNOP, is it good?", "It is.")], [2]),
    "email": ([row(*GOOD[0]), row("Who?", "Write to me@home.nl today."), row("Or?", "Or to a@example.com then.")], [2]),
    "split_leak": ([row(*GOOD[0], split="test"), row(*GOOD[1], split="train"), row(GOOD[0][0], "East.", split="train")], [3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_found_where_it_is_and_nowhere_else(scratch: Scratch, kind: str) -> None:
    rows, wanted = CASES[kind]
    assert lines(checked(scratch.write("rows.jsonl", rows)), kind) == wanted
    clean = checked(scratch.write("clean.jsonl", [row(*pair) for pair in GOOD]))
    assert clean["issues"] == []
    assert clean["is_valid"]


CHATS = {
    "ends with user": [("user", "a"), ("assistant", "b"), ("user", "c")],
    "begins with assistant": [("assistant", "b"), ("user", "c"), ("assistant", "d")],
    "second user turn in a row": [("user", "a"), ("user", "c"), ("assistant", "d")],
    "system turn": [("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c"), ("assistant", "d")],
    "": [(role, "s") for role in ("system", "user", "assistant", "tool", "assistant", "user", "assistant")],
}


@pytest.mark.parametrize("why", CHATS)
def test_unbalanced_turns(scratch: Scratch, why: str) -> None:
    turns = [{"role": role, "content": f"Some words {content}."} for role, content in CHATS[why]]
    good = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]
    report = checked(scratch.write("rows.jsonl", [{"messages": good}, {"messages": turns}]))
    found = [issue for issue in report["issues"] if issue["kind"] == "turns"]
    assert [issue["line"] for issue in found] == ([2] if why else [])
    assert why in (found[0]["detail"] if found else "")


def test_benchmarks_are_found_by_prompt_and_by_thirteen_words(scratch: Scratch) -> None:
    long = "On a cold morning in May the old man went down to the harbour to look for his boat"
    scratch.write("bench.jsonl", [row(GOOD[0][0], "x"), row(long, "y")])
    rows = [row("where does the sun rise", "East."), row(*GOOD[1]), row(f"Go on: {long}, and then?", "It was gone.")]
    report = checked(scratch.write("rows.jsonl", rows), "--against", "bench.jsonl")
    found = [(i["line"], i["other"]) for i in report["issues"] if i["kind"] == "benchmark_leak"]
    assert found == [(1, "bench.jsonl:1"), (3, "bench.jsonl:2")]


def test_rows_of_rare_words_are_strange_in_a_small_file(scratch: Scratch) -> None:
    draw = random.Random(0)
    words = ("card", "account", "transfer", "fee", "payment", "bank", "cash", "refund", "limit", "branch", "loan", "rate")
    asked = [" ".join(draw.choices(words, k=9)) for _ in range(300)]
    rows = [row(f"{text} number {i}?", f"The {text.split()[0]} is {text.split()[1]}.") for i, text in enumerate(asked)]
    strange = ("orchids bloom beneath mossy volcanic ridges", "violins resonate through baroque chapel naves")
    rows += [row(f"{text}?", f"Indeed {text} quietly.") for text in strange]
    assert lines(checked(scratch.write("rows.jsonl", rows)), "off_topic") == [301, 302]


def test_lengths_and_what_is_cut(scratch: Scratch) -> None:
    rows = [row(*pair) for pair in GOOD] + [row("Tell all.", "word " * 300)]
    report = checked(scratch.write("rows.jsonl", rows), "--max_length", "64")
    lengths = report["lengths"]
    assert lines(report, "cut") == [7]
    assert lengths["cut_rows"] == 1
    assert 0 < lengths["cut_supervised"] <= lengths["cut_tokens"] < lengths["tokens"]
    assert sum(count for _, _, count in lengths["histogram"]) == 7
    assert lengths["percentiles"]["p100"] > 300


def test_strict_exits_with_3_for_errors_and_warnings_only(scratch: Scratch) -> None:
    scratch.write("rows.jsonl", CASES["empty_answer"][0])
    assert main(["check", "rows.jsonl", "--strict"]) == 3
    assert main(["check", "rows.jsonl"]) == 0
    scratch.write("clean.jsonl", [row(*pair) for pair in GOOD])
    assert main(["check", "clean.jsonl", "--strict"]) == 0
    scratch.write("long.jsonl", [*(row(*pair) for pair in GOOD), row("Tell all.", "word " * 300)])
    assert main(["check", "long.jsonl", "--strict", "--max_length", "64"]) == 0, "a note is no fault"


def test_answers_beside_one_another_in_a_row_are_no_conflict(scratch: Scratch) -> None:
    instances = [{"input": "", "output": "One that is right."}, {"input": "", "output": "Another that is right."}]
    scratch.write("rows.jsonl", [{"name": "a", "instruction": "Name a number.", "instances": instances}])
    assert lines(checked("rows.jsonl"), "conflict") == []
    again = {"name": "b", "instruction": "Name a number.", "instances": [{"input": "", "output": "A third one."}]}
    scratch.write("rows.jsonl", [{"name": "a", "instruction": "Name a number.", "instances": instances}, again])
    assert lines(checked("rows.jsonl"), "conflict") == [2]


def test_a_split_that_fit_would_refuse_is_an_issue(scratch: Scratch) -> None:
    names = ("train", "tset", "dev")
    scratch.write("rows.jsonl", [row(*pair, split=name) for pair, name in zip(GOOD, names, strict=False)])
    (issue,) = [issue for issue in checked("rows.jsonl")["issues"] if issue["kind"] == "format"]
    assert (issue["line"], issue["detail"]) == (2, "expected 'split' to be train, validation or test, got 'tset'")


def test_fix_writes_what_is_left_what_went_and_why(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(*GOOD[0]), row(*GOOD[0]), "{broken", row("Where is the caf\u00c3\u00a9?", "  It   is there.  "), row("Hm?", ""),
        row("Code?", "```\nif x:\n    y  =  1\n```"),
    ]  # fmt: skip
    scratch.write("rows.jsonl", rows)
    assert main(["check", "rows.jsonl", "--fix", "out.jsonl"]) == 0
    assert "out.jsonl (kept: 3, changed among them: 1)" in capsys.readouterr().out
    left = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert left == [rows[0], row("Where is the caf\u00e9?", "It is there."), rows[5]]
    gone = [json.loads(line) for line in Path("out.quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(g["row"], g["reason"].split(":")[0]) for g in gone] == [
        ("rows.jsonl:2", "exact_duplicate"), ("rows.jsonl:5", "empty_answer"), ("rows.jsonl:3", "unreadable"),
    ]  # fmt: skip
    changes = [json.loads(line) for line in Path("out.changes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(c["row"], c["change"]) for c in changes} == {
        ("rows.jsonl:2", "removed"), ("rows.jsonl:5", "removed"), ("rows.jsonl:3", "removed"),
        ("rows.jsonl:4", "encoding repaired"), ("rows.jsonl:4", "white space"),
    }  # fmt: skip
    assert len(left) + len(gone) == len(rows)
    assert checked("out.jsonl")["issues"] == []


def test_the_page_and_the_terminal_say_the_same(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("rows.jsonl", [*CASES["secret"][0], row("<script>alert(1)</script> &", "")])
    assert main(["check", "rows.jsonl", "--output", "page.html"]) == 0
    out, page = capsys.readouterr().out, Path("page.html").read_text(encoding="utf-8")
    for text in ("rows.jsonl:2", "AWS access key", KINDS["empty_answer"].title):
        assert text in out
        assert text in page
    assert "AKIA" not in out + page, "a secret is not told again"
    assert "<script" not in page


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("missing.jsonl",), "missing.jsonl"), (("rows.jsonl", "--lower"), "--fix"),
        (("rows.jsonl", "--fix", "x.csv"), "x.jsonl"), (("rows.jsonl", "--fix", "rows.jsonl"), "another name"),
        (("rows.jsonl", "--shown", "-1"), "--shown"),
        (("rows.jsonl", "--fix", "no/where/x.jsonl"), "mkdir"), (("rows.jsonl", "--output", "no/x.html"), "mkdir"),
        (("rows.jsonl", "--json", "no/x.json"), "mkdir"), (("rows.jsonl", "--against", "none.jsonl"), "none.jsonl"),
        (("rows.jsonl", "--task", "nope"), "nope"), (("empty.jsonl",), "empty"),
    ],
)  # fmt: skip
def test_bad_calls_are_answered_in_a_sentence(scratch: Scratch, words: tuple[str, ...], wanted: str) -> None:
    from lightning_ft.errors import LightningFTError

    scratch.write("rows.jsonl", [row(*pair) for pair in GOOD])
    scratch.write("empty.jsonl", [])
    with pytest.raises(LightningFTError, match=wanted):
        main(["check", *words])


# Files with known faults: rows of a clean file, and among them twenty cases of each kind of issue.

EACH = 20
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

    for i in range(EACH):
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


def test_planted_faults_are_found_and_clean_rows_left_alone(scratch: Scratch, shared_data: Path) -> None:
    """Recall of at least 0.95 for each kind with twenty cases, and at most 1 % of the clean rows flagged."""
    clean = json.loads((shared_data / "raschka_instruction/instruction-data.json").read_text(encoding="utf-8"))
    rows, truth, benchmark = instructions(clean, 0)
    scratch.write("rows.jsonl", rows)
    scratch.write("bench.jsonl", benchmark)
    report = checked("rows.jsonl", "--against", "bench.jsonl", "--max_length", "512")
    found = {kind: set(lines(report, kind)) for kind in truth}
    recall = {kind: len(found[kind] & wanted) / len(wanted) for kind, wanted in truth.items()}
    assert {kind: share for kind, share in recall.items() if share < 0.95} == {}
    faulty = set().union(*truth.values())
    touched = faulty | {i["line"] for i in report["issues"] if i["other"] and int(i["other"].split(":")[1]) in faulty}
    false = {issue["line"] for issue in report["issues"]} - touched
    assert len(false) <= 0.01 * (len(rows) - len(faulty)), [i for i in report["issues"] if i["line"] in false][:20]


def test_wrong_labels_other_topics_and_languages_are_found(scratch: Scratch, shared_data: Path) -> None:
    with (shared_data / "banking77/train.csv").open(encoding="utf-8", newline="") as stream:
        clean = list(csv.DictReader(stream))
    draw = random.Random(0)
    draw.shuffle(clean)
    rows: list[dict[str, str]] = [dict(r) for r in clean]
    classes = sorted({r["category"] for r in clean})
    wrong = set(range(1, 2 * EACH + 1, 2))
    for line in wrong:
        rows[line - 1]["category"] = draw.choice([c for c in classes if c[:4] != rows[line - 1]["category"][:4]])
    asked = json.loads((shared_data / "raschka_instruction/instruction-data.json").read_text(encoding="utf-8"))
    topics = ("photosynthesis", "poem", "planet", "chemical", "synonym")
    other = [ask(r) for r in asked if any(word in r["instruction"] for word in topics)][:EACH]
    rows += [{"text": text, "category": draw.choice(classes)} for text in other]
    foreign = [f"{FOREIGN[i % 5]} ({i})" for i in range(EACH)]
    rows += [{"text": text, "category": draw.choice(classes)} for text in foreign]
    report = checked(scratch.write("rows.jsonl", rows))
    labels, language = set(lines(report, "label")), set(lines(report, "language"))
    assert len(labels & wrong) >= 0.95 * len(wrong)
    assert sum(line <= len(clean) for line in labels - wrong) <= 0.01 * len(clean)
    spoken = set(range(len(rows) - EACH + 1, len(rows) + 1))
    assert len(language & spoken) >= 0.95 * EACH
    assert len(language - spoken) <= 0.01 * len(clean)
    assert report["balance"]["class"]
    strange = set(lines(report, "off_topic"))
    astray = set(range(len(clean) + 1, len(rows) + 1))
    assert len(strange & astray) >= 0.7 * len(astray)
    assert len(strange - astray) <= 0.01 * len(clean)


NAMES = (
    "password", "Passwd", "PWD", "api_key", "API-Key", "ApiKey", "secret", "secret_key", "SecretKey", "access_token",
    "access-token", "AccessToken",
)  # fmt: skip
SECRETIVE = [
    *(start + "ABCDEFGHIJKLMNOP" for start in ("AKIA", "ASIA")), *(f"gh{kind}_" + "a1" * 20 for kind in "pousr"),
    "github_pat_" + "a1" * 30, "glpat-" + "a1" * 12, *(f"xox{kind}-" + "1234567890ab" for kind in "abprs"),
    *(f"sk-{kind}" + "a1" * 12 for kind in ("", "proj-", "ant-")), "hf_" + "a1" * 20, "AIza" + "a1" * 17 + "b",
    "-----BEGIN PRIVATE " + "KEY-----", "eyJ" + "a1" * 8 + ".eyJ" + "b2" * 8 + ".c3c3c3",
    *(f"{name}: hunter2x9" for name in NAMES), "postgres://me:" + "hunter2x@host.org",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETIVE)
def test_every_form_of_a_secret_is_found(text: str) -> None:
    """Also by the short search for hints that goes before the long one."""
    record = Record(Row({}, "f", 1), Conversation((Message("user", f"Is this mine: {text} ?"), Message("assistant", "No."))))
    assert next(kind for kind, *_ in check_secrets([record])) == "secret"
