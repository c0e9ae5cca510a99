from __future__ import annotations

import math

import pytest
from lightning_ft_tasks.dialogue import Coherence, CoherenceMargin, Flow, context_of
from lightning_ft_tasks.words import words

from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, Message, ScoredRow

SHORT = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


def row(prediction: str | None, *turns: str, number: int = 1, reference: str = "") -> ScoredRow:
    """A row of turns `u:text`; the last assistant turn is `reference`."""
    messages = [Message(SHORT[turn[0]], turn[2:]) for turn in turns]
    example = Conversation((*messages, Message("assistant", reference)))
    return ScoredRow(f"f:{number}", example, prediction=prediction, references=(reference,))


TOPICS = ["red apples grow", "blue whales swim", "old trains whistle", "green tea cools", "tall towers sway", "soft snow falls"]
RIGHT = [row(f"{text} slowly", f"u:do {text}?", number=i, reference=text) for i, text in enumerate(TOPICS)]
WRONG = [row("hm", f"u:do {text}?", number=10 + i, reference=text) for i, text in enumerate(TOPICS)]
REPEATING = [row(f"DO {text}?", f"u:do  {text}?", number=20 + i) for i, text in enumerate(TOPICS)]


def test_keeps_the_contract() -> None:
    check_metric(Coherence, RIGHT, WRONG)
    check_metric(CoherenceMargin, RIGHT, WRONG)
    check_metric(Flow, RIGHT, REPEATING)


def test_cosine_by_hand() -> None:
    """Texts `a b`, `a`, `a c`, `` (n = 4): df a = 3, b = 1, c = 1; idf(a) = ln(5/4) + 1 = 1.2231, idf(b) = ln(5/2) + 1 = 1.9163

    `a b` and `a d` share a; d is in no text, idf(d) = ln 5 + 1 = 2.6094:
    1.2231^2 / (sqrt(1.2231^2 + 1.9163^2) sqrt(1.2231^2 + 2.6094^2)) = 1.4961 / (2.2734 * 2.8819) = 0.2283.
    """
    metric = Coherence()
    rows = [row("a d", "u:a b", number=1, reference="a"), row("", "u:a c", number=2)]
    metric.prepare(rows)
    assert metric.score(rows[0]) == pytest.approx(0.2283, abs=1e-4)
    assert metric.score(rows[1]) == 0
    assert metric.score(row("b A", "u:a b")) == pytest.approx(1)


def test_it_is_scikit_learns_tfidf() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    rows = [
        row(f"{TOPICS[i - 1]} and {TOPICS[i]}", f"u:{TOPICS[i]} {TOPICS[i]}", number=i, reference=TOPICS[-i]) for i in range(6)
    ]
    # A word of an answer must be in some text: theirs drops the others, ours gives them the weight of a text count of 0.
    metric = Coherence()
    metric.prepare(rows)
    theirs = text.TfidfVectorizer(tokenizer=words, token_pattern=None)
    theirs.fit([part for one in rows for part in (context_of(one), one.references[0])])
    for one in rows:
        known = " ".join(word for word in words(one.prediction or "") if word in theirs.vocabulary_)
        a, b = (theirs.transform([part]).toarray()[0] for part in (context_of(one), known))
        assert metric.cosine(context_of(one), known) == pytest.approx(float(a @ b), abs=1e-12)
        assert metric.score(one) > 0


def test_the_weights_do_not_depend_on_the_answers_of_the_model() -> None:
    one, other = Coherence(), Coherence()
    one.prepare(RIGHT)
    other.prepare([row("whales whales", f"u:do {text}?", number=i, reference=text) for i, text in enumerate(TOPICS)])
    assert one.found == other.found
    assert one.texts == other.texts == 12


def test_the_margin_is_own_less_another_rows_answer() -> None:
    coherence, margin = Coherence(), CoherenceMargin()
    for metric in (coherence, margin):
        metric.prepare(RIGHT)
    for one in RIGHT:
        other = margin.partners[one.row]
        assert other != one.prediction
        own, count = margin.statistics(one)
        assert own == pytest.approx(coherence.score(one) - coherence.cosine(context_of(one), other))
        assert count == 1
    assert sorted(margin.partners.values()) == sorted(str(one.prediction) for one in RIGHT)
    parrot = [row("we will see", f"u:{text} we will see?", number=i) for i, text in enumerate(TOPICS)]
    margin.prepare(parrot)
    margin.update(parrot)
    assert float(margin.compute()) == pytest.approx(0, abs=1e-12), "the same answer to everything is worth nothing"
    alone = CoherenceMargin()
    alone.prepare(RIGHT[:1])
    assert alone.statistics(RIGHT[0]) == (0, 0)
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric coherence, got none"):
        coherence.score(row(None, "u:x"))
    assert math.isclose(coherence.cosine("", "x"), 0)


def test_the_margin_by_hand() -> None:
    """Each answer says again what was asked (cosine 1) and shares no word with the other row's question (cosine 0)."""
    rows = [row("cats purr", "u:cats purr", number=1), row("dogs bark", "u:dogs bark", number=2)]
    metric = CoherenceMargin()
    metric.prepare(rows)
    assert [metric.statistics(one)[0] for one in rows] == pytest.approx([1, 1])
    swapped = [row("dogs bark", "u:cats purr", number=1), row("cats purr", "u:dogs bark", number=2)]
    metric.prepare(swapped)
    assert [metric.statistics(one)[0] for one in swapped] == pytest.approx([-1, -1])


def test_the_system_turn_is_no_part_of_what_is_answered() -> None:
    assert context_of(row("x", "s:Be brief.", "u:hi", "a:hello", "u:how?")) == "hi\nhello\nhow?"
    assert context_of(ScoredRow("f:1", Conversation(()), prompt="rendered", prediction="x")) == "rendered"


@pytest.mark.parametrize(
    ("turns", "answer", "flows"),
    [
        (("u:hi",), "hello", True),
        (("s:Be brief.", "u:hi", "a:hello", "u:how?"), "well", True),
        (("u:hi", "a:let me see", "t:noon", "t:night"), "it is noon", True),
        (("u:hi",), " ", False),
        (("u:hi",), "HI", False),
        (("u:hi", "a:hello", "u:how?"), "hello", False),
        (("u:hi", "a:hello"), "more", False),
        (("u:hi", "u:there"), "hello", False),
        (("a:hi", "u:there"), "hello", False),
        (("u:hi", "s:Be brief.", "u:there"), "hello", False),
        (("u:hi", "t:noon"), "it is noon", False),
        (("u:hi", "a:", "u:there"), "hello", False),
        (("s:Be brief.",), "hello", False),
        ((), "hello", False),
    ],
)
def test_flow(turns: tuple[str, ...], answer: str, flows: bool) -> None:
    assert Flow().score(row(answer, *turns)) == float(flows)


def test_a_call_of_a_tool_needs_no_text() -> None:
    call = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "clock"}}]})
    turns = (Message("user", "time?"), call, Message("tool", "noon"), Message("assistant", "Noon."))
    assert Flow().score(ScoredRow("f:1", Conversation(turns), prediction="It is noon.")) == 1
