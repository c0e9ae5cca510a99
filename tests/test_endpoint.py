from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from lightning_ft import endpoint
from lightning_ft.endpoint import ChatEndpoint, EndpointError, key_of_environment, side_by_side
from lightning_ft.errors import UsageError
from lightning_ft.testing.chat_server import ChatServer

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-test-1234567890abcdef"
HELLO = ({"role": "user", "content": "Hello"},)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    def echo(_: str, body: dict[str, Any]) -> str:
        return f"{body['model']}: {body['messages'][-1]['content']}"

    with ChatServer(echo) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(endpoint, "PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_every_spelling_of_the_url_is_the_same_place(server: ChatServer, end: str) -> None:
    chat = ChatEndpoint(f"{server.root}/good{end}", "m", KEY)
    assert chat.ask(HELLO, temperature=0.5) == "m: Hello"
    last = server.seen("good")[-1]
    assert (last["path"], last["key"]) == ("v1/chat/completions", f"Bearer {KEY}")
    assert (last["model"], last["messages"], last["temperature"]) == ("m", list(HELLO), 0.5)


@pytest.mark.parametrize("how", ["busy", "hangup"])
def test_what_may_pass_is_tried_again(server: ChatServer, how: str) -> None:
    assert ChatEndpoint(f"{server.root}/{how}", "m").ask(HELLO) == "m: Hello"
    assert [request["key"] for request in server.seen(how)] == [None, None]


def test_a_refusal_without_text_is_an_empty_answer(server: ChatServer) -> None:
    assert ChatEndpoint(f"{server.root}/silent", "m").ask(HELLO) == ""


@pytest.mark.parametrize(
    ("how", "kind", "said", "requests"),
    [
        ("broken", EndpointError, "it answered 500 Internal Server Error 3 times; try again later.", 3),
        ("slow", EndpointError, "it did not answer within 0.1 seconds 3 times; try again later.", 3),
        ("malformed", EndpointError, 'in another format: {"choices": [; name an OpenAI-compatible one.', 1),
        ("page", EndpointError, "in another format: <html>Welcome</html>", 1),
        ("locked", UsageError, "it refused the key of $OPENAI_API_KEY (401); set OPENAI_API_KEY.", 1),
        ("unknown", UsageError, "404 Not Found: no such model, said Bearer ***; check the URL and --judge_model.", 1),
        ("moved", UsageError, "got 302 Found", 1),
    ],
)
def test_failures_are_one_sentence_without_the_key(
    server: ChatServer, how: str, kind: type[Exception], said: str, requests: int
) -> None:
    with pytest.raises(kind) as caught:
        ChatEndpoint(f"{server.root}/{how}", "m", KEY, flag="--judge", timeout=0.1).ask(HELLO)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.seen(how)) == requests


def test_an_endpoint_that_is_not_there_is_not_asked_again() -> None:
    with pytest.raises(EndpointError, match=r"could not be reached \(Connection refused\)") as caught:
        ChatEndpoint("http://127.0.0.1:9/v1", "m").ask(HELLO)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("url", ["", "http://", "ftp://a", "localhost:8000", "http://me:pw@a", "http://a b", "http://a:x"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"Expected --judge to be a URL as http://localhost:8000/v1"):
        ChatEndpoint(url, "m", flag="--judge")


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert key_of_environment() == KEY
    assert KEY not in repr(ChatEndpoint("http://a", "m", KEY))
    with pytest.raises(UsageError, match="other characters in it") as caught:
        ChatEndpoint("http://a", "m", "sk-\u00fcbel\nX: y")
    assert "bel" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert key_of_environment() == ""


def test_an_endpoint_that_asks_for_hours_is_not_obeyed(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    reply = server.reply
    monkeypatch.setattr(server, "reply", lambda *a: (429, b"{}", {"Retry-After": "7200"}) if not waited else reply(*a))
    assert ChatEndpoint(f"{server.root}/good", "m").ask(HELLO) == "m: Hello"
    assert waited == [endpoint.LONGEST_PAUSE]


def test_work_side_by_side_keeps_its_order() -> None:
    assert list(side_by_side(lambda x: x * x, range(50))) == [x * x for x in range(50)]
    assert list(side_by_side(str, [])) == []
