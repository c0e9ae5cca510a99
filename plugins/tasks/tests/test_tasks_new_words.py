"""Words that become tokens: which, from where, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.domain import Domain

from lightning_ft.backbone import load_tokenizer
from lightning_ft.errors import UsageError
from lightning_ft.loading import embedded_folder
from lightning_ft.testing.models import tiny_tokenizer
from lightning_ft.types import Conversation, Message, Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lightning_ft.types import Example


def words(option: str, *texts: str, tokenizer: Any = None) -> list[str]:
    examples: list[Example] = [Text(text) for text in texts]
    return list(Domain(add_tokens=option).new_tokens(examples, tiny_tokenizer() if tokenizer is None else tokenizer))


def test_words_of_more_than_three_pieces_by_their_number() -> None:
    """By letters: `the` has 3, `heart` stands 5 times, `(valve` and ` valve` are two forms, `aorta` stands 4 times."""
    texts = (
        ["the heart, the heart; the valve"] * 2
        + ["valve: heart (valve)"]
        + ["(valve) valve"] * 4
        + ["(valve)"]
        + [" aorta"] * 4
    )
    assert words("auto", *texts) == words("auto:9", *texts) == ["valve", " valve", " heart"]
    assert words("auto:1", *texts) == ["valve"]


def test_equal_numbers_go_by_letters_whatever_the_order_of_the_rows() -> None:
    texts = ["beta", "alpha"] * 5
    assert words("auto", *texts) == words("auto", *reversed(texts)) == ["alpha", "beta"]


def test_words_of_questions_count_too() -> None:
    turns = (Message("user", "the heart"), Message("assistant", "a valve"))
    assert Domain(add_tokens="auto").new_tokens([Conversation(turns)] * 5, tiny_tokenizer()) == [" heart", " valve"]


def test_a_word_that_could_not_be_read_again_is_passed_over() -> None:
    """Without a space before it, the byte-level tokenizer would take its umlaut for a byte."""
    assert words("auto", *["Kl\u00e4ger, der Kl\u00e4ger"] * 5) == [" Kl\u00e4ger"]
    with pytest.raises(UsageError, match=r"got none that this tokenizer could write as a token; leave --task.add_tokens out"):
        words("auto", *["Kl\u00e4ger"] * 5)


def test_no_word_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"Expected words of more than 3 tokens that stand 5 times or more .* got none; leave"):
        words("auto", *["heart"] * 4)


def test_rows_are_read_for_auto_alone(tmp_path: Path) -> None:
    def untouched() -> Iterator[Example]:
        raise AssertionError("nobody asked for the rows")
        yield Text("")

    file = tmp_path / "words.txt"
    file.write_text("heart\n\n  valve \nheart\n", encoding="utf-8")
    assert Domain().new_tokens(untouched(), tiny_tokenizer()) == ()
    assert Domain(add_tokens=str(file)).new_tokens(untouched(), tiny_tokenizer()) == [" heart", " valve"]


@pytest.mark.parametrize("option", ["auto:", "auto:0", "auto:-3", "auto:many", "auto:1.5", "auto: 5"])
def test_auto_needs_a_number(option: str) -> None:
    with pytest.raises(
        UsageError, match=f"Expected --task.add_tokens auto:N with a whole number of at least 1, got '{option}'"
    ):
        Domain(add_tokens=option)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"Expected --task.add_tokens auto, auto:N or a file with a word in each line; got '.*' \(No such file"),
        (b"", "Expected --task.add_tokens to be a file with a word in each line; '.*' has none"),
        (b" \n\n", "has none"),
        (b"\xff\xfe", "bytes that are no UTF-8"),
        (b"myocarditis\nheart valve\n", "words.txt:2: expected one word, got 'heart valve'; write each into a line of its own"),
        (b"myocarditis\nthe\n", "words.txt:2: expected a word that is no token yet, got 'the'; take it out"),
    ],
)
def test_files_that_are_no_list_of_new_words(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        words(str(file), tokenizer=load_tokenizer(str(embedded_folder())))
