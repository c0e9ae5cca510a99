from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main
from lightning_ft_datatools.records import bare
from lightning_ft_datatools.selection import select
from lightning_ft_datatools.similar import NEAR, likeness, near_pairs
from lightning_ft_datatools.splitting import split

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from lightning_ft.data.split import Split
    from lightning_ft.testing.fixtures import Scratch

WORDS = re.findall(
    r"\w+",
    "river stone window garden paper silver winter market engine letter bridge candle forest harbour kitchen ladder mirror "
    "needle orchard pocket quarry ribbon shadow timber valley wagon yellow basket copper dragon eagle feather glacier hammer "
    "island jungle kettle lantern meadow north ocean parcel quiver rocket saddle tunnel urchin velvet whistle zebra anchor "
    "button carpet desert ember fiddle gravel helmet ivory jacket kernel",
)


def sentence(draw: random.Random, length: int = 12) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(length)).capitalize() + "."


def rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"question": sentence(draw), "answer": sentence(draw), "kind": "abc"[min(2, i % 10 // 4)]} for i in range(number)]


def changed(text: str, draw: random.Random) -> str:
    """Nearly the same text."""
    words = text.split()
    i = draw.randrange(len(words))
    way = draw.randrange(4)
    if way == 0:
        return text.lower().rstrip(".") + " !"
    if way == 1:
        return f"Please {text}"
    if way == 2:
        return text.replace(" ", "  ").upper()
    words[i] = words[i][:2] + words[i][3:4] + words[i][2:3] + words[i][4:] if len(words[i]) > 4 else words[i]
    return " ".join(words)


def test_near_duplicates_of_a_known_set() -> None:
    """Recall and precision of at least 0.9 (here on 600 texts with 200 known copies)."""
    draw = random.Random(1)
    texts = [sentence(draw, draw.randint(6, 60)) for _ in range(400)]
    copied = draw.sample(range(400), 200)
    known = {(i, 400 + n) for n, i in enumerate(copied)}
    texts += [changed(texts[i], draw) for i in copied]
    found = {(i, j) for i, j, _ in near_pairs(texts)}
    assert len(found & known) >= 0.9 * len(known)
    assert len(found & known) >= 0.9 * len(found)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("What is the capital of France?", "what is the capital  of france", True),
        ("What is the capital of France?", "Please, what is the capital of France?", True),
        ("What is the captial of France?", "What is the capital of France?", True),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("Convert 3 km to m", "Convert 5 km to m", False),
        ("Give an antonym of big", "Give a synonym of big", False),
    ],
)
def test_what_near_means(one: str, other: str, near: bool) -> None:
    assert (likeness(*(Counter(bare(text).split()) for text in (one, other))) >= NEAR) is near


def test_split_keeps_what_is_alike_together_and_says_what_is_left(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    draw, plain = random.Random(2), rows(200)
    twins = [{**row, "question": changed(row["question"], draw), "answer": "Another one."} for row in plain[:60]]
    scratch.write("rows.jsonl", plain + twins)
    words = ["split", "rows.jsonl", "--output", "parts", "--split", "0.6,0.2,0.2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    parts = {name: scratch.read(f"parts/{name}.jsonl") for name in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 260
    assert [abs(len(part) - wanted) <= 1 for part, wanted in zip(parts.values(), (156, 52, 52), strict=True)] == [True] * 3
    place = {row["question"]: name for name, part in parts.items() for row in part}
    assert all(place[row["question"]] == place[twin["question"]] for row, twin in zip(plain, twins, strict=False))
    assert "proof:" in out
    assert main(words) == 0
    assert {name: scratch.read(f"parts/{name}.jsonl") for name in parts} == parts, "the same seed, the same parts"


def test_the_proof_names_the_most_alike_rows(scratch: Scratch) -> None:
    """Twenty words each, two of them of its own: two rows differ in four."""
    values = []
    for n in range(5):
        words = list(WORDS[:20])
        words[2 * n : 2 * n + 2] = [f"own{n}a", f"own{n}b"]
        values.append({"question": " ".join(words), "answer": "x y z"})
    parts = split([scratch.write("rows.jsonl", values)], (0.5, 0.5))
    assert parts.closest is not None
    share, one, other = parts.closest
    assert share == pytest.approx(0.8)
    assert {one, other} <= {f"rows.jsonl:{n}" for n in range(1, 6)}
    assert one != other
    assert f"share 80 % of their words: {one} and {other}" in parts.proof


def test_strata_and_groups(scratch: Scratch) -> None:
    values = [{**row, "who": f"person {i % 40}"} for i, row in enumerate(rows(400))]
    name = scratch.write("rows.jsonl", values)
    strata = split([name], (0.8, 0.2), stratify="kind")
    shares: list[tuple[Split, float]] = [("train", 0.8), ("validation", 0.2)]
    for part, share in shares:
        counts = Counter(row["kind"] for row in strata.rows(part))
        for kind, number in Counter(row["kind"] for row in values).items():
            assert abs(counts[kind] - share * number) <= 1
    grouped = split([name], (0.8, 0.2), group=["who"])
    where: dict[str, set[str]] = {}
    for part, _ in shares:
        for row in grouped.rows(part):
            where.setdefault(row["who"], set()).add(part)
    assert len(where) == 40
    assert all(len(places) == 1 for places in where.values())
    with pytest.raises(UsageError, match="'nobody'"):
        split([name], group=["nobody"])


def test_select_the_most_different(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of ten families of nearly equal rows, ten rows are one of each."""
    draw = random.Random(4)
    families = [sentence(draw, 20) for _ in range(10)]
    values = [{"question": f"{family} {sentence(draw, 2)}", "answer": family, "family": n} for n, family in enumerate(families)
              for _ in range(20)]  # fmt: skip
    draw.shuffle(values)
    name = scratch.write("rows.jsonl", values)
    assert main(["select", name, "--count", "10", "--output", "few.jsonl"]) == 0
    assert "few.jsonl: 10 rows" in capsys.readouterr().out
    chosen = scratch.read("few.jsonl")
    assert {row["family"] for row in chosen} == set(range(10))
    assert select([name], 10) == chosen, "always the same"
    assert [value for value in values if value in chosen] == chosen, "in the order of the file"


def test_select_by_quality_and_in_balance(scratch: Scratch) -> None:
    good, bad = rows(20), [{"question": f"Row {i}?", "answer": "idk", "kind": "d"} for i in range(20)]
    name = scratch.write("rows.jsonl", bad + good)
    chosen = select([name], 20, by="quality")
    assert {row["kind"] for row in chosen} == {"a", "b", "c"}
    assert all(0 <= row[part] <= 1 for row in chosen for part in ("long_enough", "says_something", "own_words", "quality"))
    balanced = Counter(row["kind"] for row in select([name], 12, balance="kind"))
    assert balanced == {"a": 3, "b": 3, "c": 3, "d": 3}
    all_of_few = Counter(row["kind"] for row in select([name], 30, balance="kind"))
    assert sum(all_of_few.values()) == 30
    with pytest.raises(UsageError, match="between 1 and 40"):
        select([name], 41)
    with pytest.raises(UsageError, match="'nothing'"):
        select([name], 4, balance="nothing")
    with pytest.raises(UsageError, match="--by"):
        select([name], 4, by="luck")


SEVERAL: list[dict[str, Any]] = [
    {"instruction": f"{word} it.", "instances": [{"input": f"{word} {n}", "output": f"{n} {word}"} for n in range(3)]}
    for word in WORDS[:12]
]
"""Rows that stand for three each."""


@pytest.mark.parametrize("command", ["split", "prepare"])
def test_a_row_that_stands_for_several_is_written_whole(scratch: Scratch, command: str) -> None:
    scratch.write("rows.jsonl", SEVERAL)
    assert main([command, "rows.jsonl", "--output", "parts", "--split", "0.5,0.5"]) == 0
    written = [row for name in ("train", "validation") for row in scratch.read(f"parts/{name}.jsonl")]
    assert sorted(written, key=str) == sorted(SEVERAL, key=str)


@pytest.mark.parametrize("command", ["split", "prepare"])
def test_the_rows_of_an_older_split_never_stand_beside_a_new_one(scratch: Scratch, command: str) -> None:
    draw = random.Random(0)
    scratch.write("rows.jsonl", [{"question": sentence(draw), "answer": sentence(draw)} for _ in range(20)])
    assert main([command, "rows.jsonl", "--output", "parts", "--split", "0.6,0.2,0.2"]) == 0
    before = {path.name: path.read_bytes() for path in Path("parts").glob("t*.jsonl")}
    with pytest.raises(UsageError, match=r"a folder without 'parts/test\.jsonl', which has no rows now and which `fit` would"):
        main([command, "rows.jsonl", "--output", "parts", "--split", "0.8,0.2"])
    assert {path.name: path.read_bytes() for path in Path("parts").glob("t*.jsonl")} == before


def test_a_thousand_equal_prompts_are_a_thousand_pairs() -> None:
    from lightning_ft_datatools.similar import pairs_of_different

    texts = ["Write a haiku."] * 1000 + ["Please, write a haiku.", "Name the capital of France.", ""]
    found = list(pairs_of_different(texts))
    assert len(found) == 1000
    assert {one for one, _, _ in found} == {0}
    assert {other for _, other, _ in found} == set(range(1, 1001))
