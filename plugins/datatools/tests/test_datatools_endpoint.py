from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_datatools import augment
from lightning_ft_datatools.command import main

from lightning_ft import endpoint
from lightning_ft.errors import UsageError
from lightning_ft.testing.chat_server import ChatServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.testing.fixtures import Scratch

KEY = "sk-test-1234567890abcdef"
PLACES = ("parcel", "card", "garden", "station", "library", "museum")


def run(*words: str) -> list[dict[str, Any]]:
    """The further rows that the command wrote."""
    assert main(["augment", *words, "--share", "1", "--output", "out.jsonl"]) == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in found if "augmented" in row]


def answer(how: str, body: dict[str, Any]) -> str:
    """What the server says to a request for another wording."""
    text = body["messages"][-1]["content"].partition("Text:\n")[2]
    if how == "wordy":
        return str(text + " indeed" * 200)
    if how == "forgetful":
        return "Something without any figures"
    if how == "parrot":
        return str(text.upper())
    return f'<think>Hm.</think>\n"Number {body["seed"]} in other words, {text}"'


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(answer) as running:
        yield running


@pytest.fixture
def asked(scratch: Scratch, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> ChatServer:
    """The server with a file of rows, a key, and no time to lose."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(endpoint, "PAUSES", (0.0, 0.0))
    scratch.write("rows.jsonl", [{"question": f"Where is the {place}?", "answer": "Here."} for place in PLACES])
    return server


def test_an_endpoint_rephrases(asked: ChatServer) -> None:
    found = run("rows.jsonl", "--rephrase", f"{asked.root}/good", "--rephrase_model", "m-1", "--copies", "2")
    assert len(found) == 12
    assert found[0]["augmented"] == {
        "from": "rows.jsonl:1", "way": "endpoint", "model": "m-1", "temperature": 0.7, "seed": 0, "copy": 1,
    }  # fmt: skip
    assert all(re.fullmatch(r"Number \d+ in other words, Where is the \w+\?", row["question"]) for row in found)
    requests = asked.seen("good")
    assert {(r["path"], r["key"], r["model"], r["temperature"]) for r in requests} == {
        ("v1/chat/completions", f"Bearer {KEY}", "m-1", 0.7)
    }
    assert len({r["seed"] for r in requests}) == 12
    assert not any("max_tokens" in r for r in requests)


@pytest.mark.parametrize("how", ["busy", "hangup"])
def test_an_endpoint_is_asked_again(asked: ChatServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    url = f"{asked.root}/{how}/v1/chat/completions"
    found = augment("rows.jsonl", rephrase=url, rephrase_model="m", share=1.0, max_new_tokens=99)
    assert found.accounts["endpoint"].made == 6
    requests = asked.seen(how)
    assert len(requests) == 12
    assert {(r["key"], r["max_tokens"]) for r in requests} == {(None, 99)}


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("broken", 1, "it answered 500 Internal Server Error 3 times; try again later."),
        ("malformed", 1, 'it answered in another format: {"choices": [; name an OpenAI-compatible one.'),
        ("page", 1, "it answered in another format: <html>Welcome</html>"),
        ("locked", 2, "it refused the key of $OPENAI_API_KEY (401); set OPENAI_API_KEY."),
        ("unknown", 2, "got 404 Not Found: no such model, said Bearer ***; check the URL and --rephrase_model."),
        ("moved", 2, "got 302 Found"),
    ],
)
def test_an_endpoint_that_fails(asked: ChatServer, how: str, code: int, said: str) -> None:
    """In a process, as users see it: one sentence, the exit code, no key, and no file."""
    code_of_main = "from lightning_ft.__main__ import main; sys.exit(main())"
    patched = f"import sys; from lightning_ft import endpoint; endpoint.PAUSES = (0, 0); {code_of_main}"
    words = ["data", "augment", "rows.jsonl", "--rephrase", f"{asked.root}/{how}/v1", "--rephrase_model", "m"]
    words += ["--output", "out.jsonl"]
    done = subprocess.run([sys.executable, "-c", patched, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert KEY not in done.stderr + done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["rows.jsonl"]


def test_an_endpoint_that_is_not_there(asked: ChatServer) -> None:
    with pytest.raises(endpoint.EndpointError, match=r"could not be reached \(Connection refused\)") as caught:
        run("rows.jsonl", "--rephrase", "http://127.0.0.1:9/v1", "--rephrase_model", "m")
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="as http://localhost:8000/v1"):
        run("rows.jsonl", "--rephrase", "http://", "--rephrase_model", "m")


def test_a_key_of_strange_signs_is_not_repeated(asked: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00fcbel\nX: y")
    with pytest.raises(UsageError, match="other characters in it") as caught:
        run("rows.jsonl", "--rephrase", f"{asked.root}/good", "--rephrase_model", "m")
    assert "bel" not in str(caught.value)
    assert KEY not in repr(endpoint.ChatEndpoint("http://a", "m", KEY))


@pytest.mark.parametrize(
    ("how", "why"),
    [("silent", "empty"), ("wordy", "far too long"), ("parrot", "the same as the original"), ("forgetful", "lost a number")],
)
def test_rephrasings_that_are_refused(asked: ChatServer, scratch: Scratch, how: str, why: str) -> None:
    scratch.write("rows.jsonl", [{"question": f"How far are {n} miles?", "answer": str(n)} for n in range(4)])
    found = augment("rows.jsonl", rephrase=f"{asked.root}/{how}", rephrase_model="m", share=1.0)
    account = found.accounts["endpoint"]
    assert (account.made, account.refused.total()) == (0, 4)
    assert all(reason.startswith(why) for reason in account.refused)
    assert found.rows == scratch.read("rows.jsonl")


def test_a_local_model_rephrases(scratch: Scratch) -> None:
    values = [{"question": "Where is my parcel?", "answer": "Here."}, {"question": "Can I pay by card?", "answer": "Yes."}]
    scratch.write("rows.jsonl", values)
    words = ("rows.jsonl", "--rephrase", "local", "--rephrase_model", "embedded", "--max_new_tokens", "8")
    copies = run(*words)
    assert len(copies) == 2
    assert copies[0]["augmented"]["model"] == "embedded"
    assert {copy["answer"] for copy in copies} == {"Here.", "Yes."}
    assert all(copy["question"] not in {row["question"] for row in values} for copy in copies)
    assert run(*words) == copies
