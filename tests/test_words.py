"""What a word is, and in how many tokens a real tokenizer writes it."""

from __future__ import annotations

import pytest

from lightning_ft.backbone import load_tokenizer
from lightning_ft.loading import embedded_folder
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.words import pieces_of_words, word_pattern

HINDI, ARABIC = "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0642\u0644\u0652\u0628"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The heart's beta-blocker, 12 mg", ["The", "heart", "s", "beta", "blocker", "mg"]),
        ("B12 covid19_x", ["B", "covid", "x"]),
        ("Kl\u00e4ger Kla\u0308ger", ["Kl\u00e4ger", "Kla\u0308ger"]),
        (f"{HINDI}, {ARABIC}", [HINDI, ARABIC]),
        ("\u6771\u4eac\u3067", ["\u6771", "\u4eac", "\u3067"]),
        ("... 4 \U0001f600", []),
        ("", []),
    ],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert word_pattern().findall(text) == words


def test_pieces_of_letters_are_their_bytes() -> None:
    found = list(pieces_of_words(tiny_tokenizer(), ["the \u00e9t\u00e9, 4", "", "\u6771x"]))
    assert found == [[(0, 3, 3), (4, 7, 5)], [], [(0, 1, 3), (1, 2, 1)]]


def test_pieces_in_the_text_are_those_of_the_tokenizer() -> None:
    tokenizer = load_tokenizer(str(embedded_folder()))
    text = "Acute myocarditis (not myocarditis alone): the heart."
    (found,) = pieces_of_words(tokenizer, [text])
    with_space = [max(start - 1, 0) if text[start - 1] == " " else start for start, _, _ in found]
    alone = [text[start:end] for start, (_, end, _) in zip(with_space, found, strict=True)]
    assert [pieces for _, _, pieces in found] == [len(tokenizer.tokenize(word)) for word in alone]
    assert found[1][2] > 3, "or this test shows nothing"
    tokenizer.add_tokens([" myocarditis"])
    (found,) = pieces_of_words(tokenizer, [text])
    assert [found[1][2], found[3][2]] == [1, 1]
