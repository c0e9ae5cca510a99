"""METEOR with a WordNet of two words, as its data are downloaded: by hand, and as NLTK says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning_ft_tasks import meteor
from lightning_ft_tasks.meteor import Meteor
from lightning_ft_tasks.words import words
from nltk.translate.meteor_score import meteor_score

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, ScoredRow

SYNONYMS = {"car": ["car", "auto", "motor_car"], "auto": ["auto", "car"]}


class Little:
    """As much of NLTK's reader as METEOR asks of it."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        names = [SimpleNamespace(name=lambda name=name: name) for name in SYNONYMS.get(word, [])]
        return [SimpleNamespace(lemmas=lambda: names)]


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Little:
    made = Little()
    monkeypatch.setattr(meteor, "wordnet", lambda: made)
    return made


def row(prediction: str, *references: str) -> ScoredRow:
    return ScoredRow("f:1", Conversation(()), prediction=prediction, references=references)


def test_by_hand(little: Little) -> None:
    score = Meteor().score
    assert score(row("The cat sat.", "the cat sat")) == pytest.approx(1 - 0.5 / 27), "three words in one run"
    assert score(row("sat cat the", "the cat sat")) == pytest.approx(1 - 0.5), "in three runs"
    assert score(row("my auto", "my car")) == pytest.approx(1 - 0.5 / 8), "a synonym"
    assert score(row("he jumps", "he jumped")) == pytest.approx(1 - 0.5 / 8), "a stem"
    # One of two words is right, of one wanted: P = 1/2, R = 1, F = 0.5 / (0.45 + 0.1), one match in one run.
    assert score(row("the dog", "the")) == pytest.approx(0.5 / 0.55 * 0.5)
    assert score(row("", "the cat")) == 0
    assert score(row("blue", "the cat", "a blue")) == score(row("blue", "a blue")) > 0, "of several references the best"


def test_it_is_what_nltk_says(little: Little) -> None:
    for said, wanted in (
        (
            "It is a guide to action which ensures that the military always obeys",
            "It is a guide to action that ensures that it",
        ),
        ("An auto drove to the cats' house", "The car was driving to a house of a cat"),
        ("a a a b", "b a a c a"),
    ):
        theirs = meteor_score([words(wanted)], words(said), wordnet=little)
        assert Meteor().score(row(said, wanted)) == theirs


def test_keeps_the_contract(little: Little) -> None:
    right = [row(text, text) for text in ("the cat sat down", "a car came by", "it is so")]
    check_metric(Meteor, right, [row("nothing", *one.references) for one in right])


def test_without_wordnet_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def missing(name: str) -> None:
        raise LookupError(name)

    monkeypatch.setattr(nltk.data, "find", missing)
    meteor.wordnet.cache_clear()
    with pytest.raises(
        UsageError, match=r"Expected NLTK's data of WordNet for metric meteor.*python -m nltk\.downloader wordnet"
    ):
        Meteor().check(row("a", "a"))


def test_a_wordnet_of_which_a_part_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def broken() -> None:
        raise OSError("No such file or directory: 'lexnames'")

    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=broken))
    meteor.wordnet.cache_clear()
    with pytest.raises(
        UsageError, match=r"data of WordNet to be whole; No such file or directory: 'lexnames': type `python -m"
    ):
        meteor.wordnet()
