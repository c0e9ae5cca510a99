from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_ft_datatools.noise import KINDS, noisy, protected
from lightning_ft_datatools.records import folded
from lightning_ft_datatools.rephrasing import cleaned, why_refused
from lightning_ft_datatools.wording import wordings

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("river", "stone", "window", "garden", "paper", "silver", "winter", "market", "engine", "letter", "bridge", "candle")
LONG = " ".join(random.Random(0).choices(WORDS, k=20_000))
PROMPTS = (
    "Write a poem about the river. It should rhyme.", "What is the capital of France?", "How do I reset my password?",
    "Could you explain the second law of motion?", "My card has not arrived.", "Translate the sentence: Good morning.",
    "Name three fruits", "Is there a way to track my parcel?", "Please list the planets.", "Where is my new card?",
)  # fmt: skip


# --- slips ----------------------------------------------------------------------------------------------------------------


def test_the_rate_of_slips_is_the_one_that_was_asked_for() -> None:
    """By hand: a word of n letters stays as it is with (1 - p)^n, where a swap takes the chance of the letter behind it."""
    rate = 0.05
    case = noisy(LONG, "case", rate, random.Random(2)).split()
    assert sum(a != b for a, b in zip(LONG.split(), case, strict=True)) / len(case) == pytest.approx(rate, abs=0.005)
    typo = noisy(LONG, "typo", rate, random.Random(2)).split()
    expected = sum(1 - (1 - rate) ** len(word) for word in LONG.split()) / len(typo)
    assert sum(a != b for a, b in zip(LONG.split(), typo, strict=True)) / len(typo) == pytest.approx(expected, abs=0.01)
    space = noisy(LONG, "space", rate, random.Random(2))
    assert space.replace(" ", "").replace("\t", "") == LONG.replace(" ", "")
    gaps = re.split("[a-z]+", LONG)[1:-1], rate * LONG.count(" ")
    assert len(space.split()) == pytest.approx(len(gaps[0]) + 1 - gaps[1] / 3, abs=100)
    assert len(re.findall("  |\t", space)) == pytest.approx(2 * gaps[1] / 3, abs=100)


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_nought_and_one(kind: str) -> None:
    assert noisy(LONG, kind, 0.0, random.Random(0)) == LONG
    changed = noisy("river stone window", kind, 1.0, random.Random(0))
    assert changed != "river stone window"
    if kind == "case":
        assert all(a != b for a, b in zip(changed.split(), ["river", "stone", "window"], strict=True))


KEPT = (
    "```python\nfor river in stone:\n    print(river)\n```", "`garden_paper`", "https://example.org/silver?winter=market",
    "name@example.org", "12,000.5", "3rd", "<|im_start|>", "</s>", "[INST]", "{placeholder}", "{{name}}", "snake_case_name",
    '{"outer": {"inner": "stone"}}', '"quoted words"', "$a_{river}^2$",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*KEPT, *WORDS]), min_size=1, max_size=12), st.sampled_from(list(KINDS)), st.integers(0, 999))
def test_what_is_protected_stays_whatever_stands_around_it(parts: list[str], kind: str, seed: int) -> None:
    text = " ".join(parts)
    out = noisy(text, kind, 1.0, random.Random(seed))
    for part in set(parts) & set(KEPT):
        assert out.count(part) >= text.count(part)


def test_typos_are_slips_of_the_hand() -> None:
    """Every slip of a word of one letter repeated is one of the four kinds, by the keyboard."""
    found = {noisy("gg", "typo", 0.5, random.Random(seed)) for seed in range(500)}
    assert {letter for word in found for letter in word} == set("gfhtyvb")
    assert "" not in found
    assert noisy("Stone", "typo", 1.0, random.Random(3)) != "Stone"
    assert noisy("a I", "typo", 1.0, random.Random(3)) == "a I", "a word of one letter would be another one"


def test_unpaired_braces_and_open_fences() -> None:
    assert protected("} a { b") == []
    assert protected("a {b {c} d} e") == [(2, 11)]
    text = "look: ```\nwindow garden"
    assert protected(text) == [(6, len(text))]


# --- templates ------------------------------------------------------------------------------------------------------------

FUNCTION = frozenset(("i", "do", "how", "could", "you", "can", "please", "kindly"))
"""Words that a question may lose as it becomes a request, and politeness."""


def content(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"\w+", text.lower()) if word not in FUNCTION)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_wordings_keep_every_content_word(prompt: str) -> None:
    found = wordings(prompt)
    assert len(found) >= 6
    assert len({folded(text) for text in found} | {folded(prompt)}) == len(found) + 1, "none twice, none the original"
    for text in found:
        assert not content(prompt) - content(text)
        assert why_refused(prompt, text) is None
        assert "{" not in text


def test_wordings_of_real_instructions(shared_data: Path) -> None:
    rows = json.loads((shared_data / "raschka_instruction" / "instruction-data.json").read_text(encoding="utf-8"))
    prompts = {row["instruction"] for row in rows}
    found = {prompt: wordings(prompt) for prompt in prompts}
    assert sum(map(bool, found.values())) >= 0.98 * len(prompts)
    for prompt, texts in found.items():
        assert not [text for text in texts if content(prompt) - content(text) or why_refused(prompt, text)]


def test_requests_become_questions_and_back_only_where_that_is_grammatical() -> None:
    assert "Could you write a poem about the river? It should rhyme." in wordings(PROMPTS[0])
    assert "Tell me what the capital of France is." in wordings(PROMPTS[1])
    assert "Explain how to reset my password." in wordings(PROMPTS[2])
    assert "Please explain the second law of motion." in wordings(PROMPTS[3])
    assert "List the planets." in wordings("Please list the planets.")
    assert not any(text.startswith(("Could you", "Can you")) for text in wordings("Translate the sentence: Good morning."))
    assert not any(text.startswith("Tell me what") for text in wordings("What is the name of the song you listen to?"))
    assert not any("Thank" in text for text in wordings('Repeat this: "I came late."')), "thanks would be repeated"
    assert not any(text.startswith("Please name") for text in wordings("Name is a noun and not a verb."))


@pytest.mark.parametrize(
    "prompt", ["", "12 + 4", "Was kostet ein Brot?", "Describe la casa de Juan.", "WRITE A POEM", "<s> Write"]
)
def test_no_template_fits_what_is_no_english_sentence(prompt: str) -> None:
    assert wordings(prompt) == []


@pytest.mark.parametrize(
    ("text", "new", "why"),
    [
        ("Where is it?", " ", "empty"),
        ("Where is it?", "where  IS it?", "the same as the original"),
        ("Where is it?", "word " * 60, "far too long"),
        ("Convert 5 km to m", "Convert five km to m", "lost a number"),
        ("Greet {name}", "Say hello to them", "lost a number"),
        ("Where is it?", "In which place is it?", None),
    ],
)
def test_why_a_rephrasing_is_refused(text: str, new: str, why: str | None) -> None:
    found = why_refused(text, new)
    assert found == why if why is None else (found or "").startswith(why)


def test_what_of_an_answer_is_taken() -> None:
    assert cleaned("Where?", '<think>Well.</think>\n\n"In which place?"') == "In which place?"
    assert cleaned('"Where?"', '"In which place?"') == '"In which place?"'
    assert cleaned("Where?", "  ") == ""
