"""Conversations, tools and signs: what makes two rows the same is all that is said before the answer, and what is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools.command import main

from lightning_ft.errors import DataError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch


def talk(*texts: str, **further: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, **further}


def kinds(name: str, *words: str) -> list[tuple[str, int]]:
    """Kind and line of each finding."""
    assert main(["check", name, "--json", "report.json", *words]) == 0
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    return [(issue["kind"], issue["line"]) for issue in report["issues"]]


def test_a_last_turn_that_everybody_says_makes_no_leak(scratch: Scratch) -> None:
    first, second = "Tell me about the moons of Jupiter, please.", "How do I bake bread with rye flour?"
    scratch.write("apart.jsonl", [
        talk(first, "There are many.", "continue", "The largest is Ganymede.", split="train"),
        talk(second, "With sourdough.", "continue", "Let it rest for a night.", split="test"),
    ])  # fmt: skip
    assert not [kind for kind, _ in kinds("apart.jsonl") if kind in ("split_leak", "near_duplicate")]


def test_a_question_within_a_talk_is_known_again(scratch: Scratch) -> None:
    question = "What is the capital of Mongolia?"
    hello = "Thank you for contacting us, I am happy to help you with whatever you would like to know today."
    scratch.write("talks.jsonl", [
        talk("Hi", hello, question, "Ulaanbaatar.", split="train"),
        talk("Hi", hello, "Which rivers run through Mongolia?", "The Orkhon, for one.", split="train"),
        talk(question, "It is Ulaanbaatar.", split="test"),
        talk("Good day", hello, "How many people live there?", "Three million.", split="test"),
    ])  # fmt: skip
    assert [line for kind, line in kinds("talks.jsonl") if kind == "split_leak"] == [1]


def test_questions_about_what_was_said_before_are_no_copies(scratch: Scratch) -> None:
    passage = " ".join(f"sentence {i} about the lake and its river" for i in range(40))
    scratch.write("talks.jsonl", [
        talk(passage, "Ask.", "Is the lake salty?", "No, it is not."),
        talk(passage, "Ask.", "Does the river freeze?", "No, it is not."),
    ])  # fmt: skip
    assert not [kind for kind, _ in kinds("talks.jsonl") if kind.endswith("duplicate")]


def test_a_mixture_of_files_with_and_without_splits_trains(scratch: Scratch) -> None:
    Path("d").mkdir()
    for name, first in (("d/train.jsonl", 0), ("d/test.jsonl", 10), ("other.jsonl", 20)):
        scratch.write(name, [{"question": f"What is number {i}?", "answer": f"It is {i}."} for i in range(first, first + 10)])
    assert main(["mix", "d", "other.jsonl", "--to", "messages", "--output", "mixed.jsonl"]) == 0
    splits = [row["split"] for row in scratch.read("mixed.jsonl")]
    assert (splits.count("train"), splits.count("test")) == (20, 10)


def test_thanks_at_the_end_make_no_copy(scratch: Scratch) -> None:
    scratch.write("talks.jsonl", [
        talk("Where is my parcel with the blue lamp?", "In Hamburg.", "Thanks!", "You're welcome!"),
        talk("Can I change the name of my account?", "In the settings.", "Thanks!", "You're welcome!"),
    ])  # fmt: skip
    assert not [kind for kind, _ in kinds("talks.jsonl") if kind.endswith("duplicate")]


def test_calls_of_other_tools_are_other_answers(scratch: Scratch) -> None:
    def call(name: str) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": name, "arguments": "{}"}}]
        tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}]
        turns = [{"role": "user", "content": "Turn it on."}, {"role": "assistant", "content": "", "tool_calls": calls}]
        return {"messages": turns, "tools": tools}

    scratch.write("calls.jsonl", [call("lamp_on"), call("heater_on"), call("lamp_on")])
    assert [line for kind, line in kinds("calls.jsonl") if kind == "exact_duplicate"] == [3]


def test_a_benchmark_without_answers_is_compared_too(scratch: Scratch) -> None:
    question = "Which planet has the most moons of all the planets in the solar system?"
    scratch.write("rows.jsonl", [talk("Hello.", "Hi.", question, "Saturn."), talk("What is rye?", "A grain.")])
    Path("bench.csv").write_text(f"question,answer\n{question},\nWho wrote Hamlet?,\n", encoding="utf-8")
    assert [line for kind, line in kinds("rows.jsonl", "--against", "bench.csv") if kind == "benchmark_leak"] == [1]


def test_copies_in_other_letters_are_none_where_augment_made_them(scratch: Scratch) -> None:
    scratch.write(
        "rows.jsonl", [{"question": f"What is number {i} in words?", "answer": f"It is the {i}th."} for i in range(8)]
    )
    assert main(["augment", "rows.jsonl", "--noise", "case,space", "--noise_rate", "1.0", "--output", "more.jsonl"]) == 0
    made = [row["augmented"]["way"] for row in scratch.read("more.jsonl") if row.get("augmented")]
    assert "case" in made
    assert not [kind for kind, _ in kinds("more.jsonl") if kind == "exact_duplicate"]


def test_signs_alone_have_classes_and_distances(scratch: Scratch) -> None:
    faces = {"joy": "\U0001f600\U0001f603\U0001f604", "rage": "\U0001f620\U0001f621\U0001f92c"}
    rows = [{"text": face * n, "label": name} for name, some in faces.items() for face in some for n in range(1, 5)]
    scratch.write("faces.jsonl", rows)
    assert not [kind for kind, _ in kinds("faces.jsonl", "--task", "classify") if kind.endswith("duplicate")]
    words = ["--task", "classify", "--count", "4", "--by", "diverse", "--output", "few.jsonl"]
    assert main(["select", "faces.jsonl", *words]) == 0
    assert len(scratch.read("few.jsonl")) == 4


def test_a_file_that_breaks_off_is_no_file_to_review(scratch: Scratch) -> None:
    import gzip

    whole = scratch.write("a.jsonl", [{"question": "One?", "answer": "Yes."}])
    text = "".join(json.dumps({"question": f"What is {i}?", "answer": f"It is {i}."}) + "\n" for i in range(500))
    packed = gzip.compress(text.encode())
    Path("b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"^b\.jsonl\.gz: expected a file that can be read to its end, or rows would be lost"):
        main(["review", whole, "b.jsonl.gz", "--output", "kept.jsonl"])
    assert not Path("kept.jsonl").exists()
