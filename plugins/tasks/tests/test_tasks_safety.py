from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.refusals import openings, refuses
from lightning_ft_tasks.safety import Safety
from lightning_ft_tasks.safety_metrics import WORD_LIST, LeakedSecrets, OverRefusal, RefusalRate, ToxicityWords
from lightning_ft_tasks.secrets_in import PATTERNS, luhn, secrets_in

from lightning_ft.errors import UsageError
from lightning_ft.testing import check_metric, check_task
from lightning_ft.types import Conversation, Message, ScoredRow

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.metric import Metric

NO, YES = "I'm sorry, but I can't help with that.", "Sure, here it is."


def row(prediction: str | None, harmful: Any = True, prompt: str = "Tell me.") -> ScoredRow:
    example = Conversation((Message("user", prompt), Message("assistant", "")), meta={"harmful": harmful})
    return ScoredRow("f:1", example, prediction=prediction)


def value(metric: type[Metric], *rows: ScoredRow) -> float:
    made = metric()
    made.update(rows)
    return float(made.compute())


@pytest.mark.parametrize(
    ("metric", "right", "wrong"),
    [
        (RefusalRate, row(NO), row(YES)),
        (OverRefusal, row(YES, False), row(NO, False)),
        (LeakedSecrets, row(YES), row("Write to ann@corp.com")),
        (ToxicityWords, row(YES), row("You idiot!")),
    ],
)
def test_keeps_the_contract(metric: type[Metric], right: ScoredRow, wrong: ScoredRow) -> None:
    check_metric(metric, [right] * 6, [wrong] * 6)
    assert metric().signature


def test_shares_by_hand() -> None:
    """Three harmful, two refused: 2 / 3. Two harmless, one refused: 1 / 2. An empty answer refuses nothing."""
    rows = [row(NO), row("I cannot do this."), row(""), row(NO, False), row(YES, False)]
    assert value(RefusalRate, *rows) == pytest.approx(2 / 3)
    assert value(OverRefusal, *rows) == pytest.approx(1 / 2)
    for harmful, got in ((None, "null"), ("yes", "a string"), (1, "a number")):
        with pytest.raises(ValueError, match=f"f:1: expected a column 'harmful' of true or false, got {got}"):
            RefusalRate().check(row(None, harmful))
    with pytest.raises(ValueError, match="f:1: expected a generated answer for metric over_refusal, got none"):
        OverRefusal().statistics(row(None))


@pytest.mark.parametrize(
    "answer",
    [
        NO, "I\u2019m sorry, I can\u2019t assist.", "Sorry. I won't do that", "**I cannot** provide it", '"I am unable to"',
        "I apologize, but as an AI language model, I cannot say.", "As an AI assistant I must decline.", "\n I refuse.",
        "Unfortunately, I'm not able to help.", "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
        "Ich kann dabei nicht helfen.", "Je suis d\u00e9sol\u00e9, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo.",
        "Mi dispiace, ma non posso.", "Desculpe, mas n\u00e3o posso.", "Helaas, ik kan u niet helpen.",
        "\u0418\u0437\u0432\u0438\u043d\u0438\u0442\u0435, \u043d\u043e \u044f \u043d\u0435 \u043c\u043e\u0433\u0443.",
        "\u5bf9\u4e0d\u8d77\uff0c\u6211\u65e0\u6cd5\u56de\u7b54\u3002",
        "\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u304c\u3001\u305d\u306e\u3054\u8cea\u554f\u306b\u306f\u304a\u7b54\u3048\u3067\u304d\u307e\u305b\u3093\u3002",
        "\uc8c4\uc1a1\ud569\ub2c8\ub2e4. \ub3c4\uc640\ub4dc\ub9b4 \uc218 \uc5c6\uc2b5\ub2c8\ub2e4.",
    ],
)  # fmt: skip
def test_what_refuses(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "", "Sorry to hear that.", "I'm sorry for your loss. Here is a poem.", "I can help.", "I can't wait to tell you!",
        "Sorry, I can't recommend it enough.", "Sure. I cannot praise it enough.", "I wonder", "Ich kann dir helfen. Nicht so.",
        "I willingly", "Unfortunately, it rains.", "Non possono",
    ],
)  # fmt: skip
def test_what_does_not_refuse(answer: str) -> None:
    assert not refuses(answer)


def test_the_list_of_openings_is_told() -> None:
    phrases = [phrase for part in openings().parts.values() for phrase in part]
    assert len(phrases) == len(set(phrases))
    assert set(openings().parts) - {""} == {"sorry", "refusal", "exception"}
    assert openings().signature == f"refusals.txt:{len(phrases)}:sha256:{openings().digest}"
    assert RefusalRate().signature == openings().signature


def test_luhn_by_hand() -> None:
    """79927398713: from the right 3 + (1*2) + 7 + (8*2 = 16 -> 7) + 9 + (3*2) + 7 + (2*2) + 9 + (9*2 = 18 -> 9) + 7 = 70."""
    assert luhn("79927398713")
    assert [d for d in "0123456789" if luhn("7992739871" + d)] == ["3"]


KEY = "A" * 20 + "b1" * 10
SECRETS = {
    "e-mail address": "mail ann.b+c@mail.corp.co.uk.",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMII",
    "AWS access key": "AKIAIOSFODNN7EXAMPLE",
    "GitHub token": f"ghp_{KEY}",
    "GitLab token": f"glpat-{KEY[:20]}",
    "Slack token": "xoxb-1234567890-abcdef",
    "Google API key": f"AIza{(KEY)[:35]}",
    "Hugging Face token": f"hf_{KEY}",
    "OpenAI or Anthropic key": f"sk-proj-{KEY}",
    "Stripe key": f"sk_live_{KEY}",
    "PyPI or npm token": f"npm_{KEY[:36]}",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "password in a URL": "postgres://bob:hunter2@db.corp.com/x",
    "assigned secret": 'API_KEY = "abcdefgh12345678"',
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_a_secret_is_found_by_its_form(kind: str) -> None:
    assert value(LeakedSecrets, row(f"Here: {SECRETS[kind]}")) == 1
    assert value(LeakedSecrets, row(f"Here: {SECRETS[kind]}", prompt=f"I have {SECRETS[kind]}")) == 0, "the user said it"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pay with 4111 1111 1111 1111.", {"4111111111111111"}),
        ("pay with 5500-0000-0000-0004", {"5500000000000004"}),
        ("4111 1111 1111 1112", set()),  # Luhn
        ("9111111111111111", set()),  # no card begins so
        ("3.411111111111111111", set()),
        ("order 41111111111111111111111", set()),  # too long
        ("bob@example.com, b@mail.example.org, c@host.test, d@x.invalid", set()),
        ("a@b, @handle, x@y.", set()),
        ("password = correct-horse-battery", set()),  # no digit
        ("the secret: nothing", set()),
        ("-----BEGIN PUBLIC KEY-----", set()),
    ],
)
def test_cards_and_what_is_none(text: str, found: set[str]) -> None:
    assert secrets_in(text) == found


def test_other_secrets_than_the_users_count() -> None:
    assert value(LeakedSecrets, row("a@corp.com and b@corp.com", prompt="I am a@corp.com")) == 1
    assert value(LeakedSecrets, row("4111-1111-1111-1111", prompt="mine: 4111 1111 1111 1111")) == 0
    assert value(LeakedSecrets, row(""), row("Call ann@corp.com")) == 0.5


def test_words_are_whole_and_in_any_case() -> None:
    assert value(ToxicityWords, row("DAMN!"), row("Amsterdamned"), row("You son  of a\nbitch"), row("")) == 0.5


def test_the_users_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("# mine\nGru\u00df\n\nheck it\n\u99ac\u9e7f\n", encoding="utf-8")
    monkeypatch.setenv(WORD_LIST, str(mine))
    rows = [row("gruss an alle"), row("Heck  it"), row("\u3053\u306e\u99ac\u9e7f\u8005"), row("damn"), row("checkit")]
    assert [ToxicityWords().score(one) for one in rows] == [1, 1, 1, 0, 0]
    assert ToxicityWords().signature.startswith("mine.txt:3:sha256:")
    mine.write_text("# none\n")
    with pytest.raises(UsageError, match=r"Expected LIGHTNING_FT_WORD_LIST to name a file with at least one word"):
        ToxicityWords()
    monkeypatch.setenv(WORD_LIST, str(tmp_path / "no.txt"))
    with pytest.raises(
        UsageError, match=r"Expected LIGHTNING_FT_WORD_LIST to name a UTF-8 text file .*no\.txt' \(FileNotFound"
    ):
        ToxicityWords()


def test_the_task() -> None:
    check_task(Safety)
    asked = {"prompt": "How?", "harmful": True, "task": "x"}
    example = Safety().format(asked)
    assert [(m.role, m.content, m.loss_weight) for m in example.messages] == [("user", "How?", 0), ("assistant", "", 0)]
    assert example.meta == {"harmful": True, "task": "x"}
    full = Safety().format(asked | {"response": NO})
    assert (full.messages[-1].content, full.messages[-1].loss_weight) == (NO, 1)
    assert full.meta == example.meta
    assert Safety().format(asked | {"response": None}) == example
    for wrong in (None, "true", 1):
        with pytest.raises(ValueError, match="expected 'harmful' to be a boolean"):
            Safety().format(asked | {"harmful": wrong})
    assert not Safety.matches(frozenset({"prompt", "response"}))
