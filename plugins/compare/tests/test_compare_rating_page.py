"""`rate --page`: what the local server gives to whom, and a rating in a real browser, at both widths, light and dark."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_compare.rating.command import main
from lightning_ft_compare.rating.folder import Ratings
from lightning_ft_compare.rating.pairs import answers_of, left_of, read_sides
from lightning_ft_compare.rating.server import RatingServer
from lightning_ft_compare.rating.session import Session

from lightning_ft.errors import UsageError
from lightning_ft.testing import browser as browsers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft_compare.rating.pairs import Answers

    from lightning_ft.testing.browser import Browser
    from lightning_ft.testing.fixtures import Scratch

NAMES = ("zebra.jsonl", "yak.jsonl")
CRITERIA = {"helpfulness": "How much does the answer help?", "own_1": "Is it as short as it can be?"}
HOSTILE = "</script><img src=x onerror=alert(1)><b>bold</b>"
LONG = "A long answer about <everything>, in many words. " * 60
KEYS = {"l": "left", "r": "right", "t": "tie", "b": "both_bad"}


@pytest.fixture
def served(scratch: Scratch) -> Iterator[RatingServer]:
    """A server with four pairs of which three are asked about."""
    for name in NAMES:
        said = [f"{HOSTILE} {name[0]}", LONG + name[0], "same", f"line\n\n    code {name[0]}"]
        scratch.write(name, [{"prompt": f"question {i}", "prediction": text, "reference": "r"} for i, text in enumerate(said)])
    pairs = answers_of(read_sides(NAMES), 0)
    with serving(Session(pairs, CRITERIA, Ratings(Path("ratings.jsonl")), "cyd", 0)) as server:
        yield server


@contextlib.contextmanager
def serving(session: Session) -> Iterator[RatingServer]:
    with RatingServer(session, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(60)


def ask(server: RatingServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of an answer; a header named `_` stands for none."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    known = {"Host": f"127.0.0.1:{server.port}"}
    if method == "POST":
        known |= {"Origin": f"http://127.0.0.1:{server.port}", "Content-Type": "application/json"}
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Content-Length": str(len(body or "")), **known}.items():
        if value:
            connection.putheader(name, value)
    connection.endheaders((body or "").encode())
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text, reply.headers


def lines() -> list[dict[str, Any]]:
    path = Path("ratings.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sides(pair: Answers) -> str:
    """The letters of the left and of the right answer."""
    return "AB" if left_of(pair, "cyd", 0) == "A" else "BA"


def test_what_is_served_names_no_model(served: RatingServer) -> None:
    root = f"/{served.token}/"
    status, page, headers = ask(served, "GET", root)
    assert status == 200
    rules = headers["Content-Security-Policy"]
    nonce = re.findall(r"'nonce-([^']+)'", rules)
    assert rules.startswith("default-src 'none'")
    assert "unsafe" not in rules
    assert f'<script nonce="{nonce[0]}">' in page
    assert ask(served, "GET", root)[2]["Content-Security-Policy"] != rules, "another nonce each time"
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    shown = page
    for _ in range(3 * len(CRITERIA)):
        text = ask(served, "GET", f"{root}state")[1]
        view = json.loads(text)["view"]
        step = view["step"]
        pair = next(pair for pair in answers_of(read_sides(NAMES), 0) if pair.key in step)
        assert [view["left"], view["right"]] == [pair.of["AB".index(side)] for side in sides(pair)]
        shown += text + ask(served, "POST", f"{root}act", json.dumps({"step": step, "do": "left"}))[1]
    assert json.loads(ask(served, "GET", f"{root}state")[1])["view"] is None
    assert not re.search(r"zebra|yak|jsonl|question 2|\"[AB]\"", shown), "no name, no file, and no pair of the same text"
    assert len(lines()) == 3 * 2 + 2 * any(line["choice"] == "same" for line in lines())


def test_who_is_refused(served: RatingServer) -> None:
    root, body = f"/{served.token}/", json.dumps({"step": served.state()["view"]["step"], "do": "left"})
    here = f"127.0.0.1:{served.port}"
    for method, path, text, headers, status in (
        ("GET", "/", None, {}, 404),
        ("GET", f"/{served.token}", None, {}, 404),
        ("GET", f"/{served.token[:-1]}/", None, {}, 404),
        ("GET", "/x/state", None, {}, 404),
        ("GET", f"{root}ratings.jsonl", None, {}, 404),
        ("GET", f"{root}../zebra.jsonl", None, {}, 404),
        ("GET", root, None, {"Host": "evil.example"}, 403),
        ("GET", root, None, {"Host": f"evil.example:{served.port}"}, 403),
        ("GET", root, None, {"Host": ""}, 403),
        ("GET", f"{root}state", None, {"Origin": "http://evil.example"}, 403),
        ("POST", f"{root}act", body, {"Origin": "http://evil.example"}, 403),
        ("POST", f"{root}act", body, {"Origin": "null"}, 403),
        ("POST", f"{root}act", body, {"Origin": ""}, 403),
        ("POST", f"{root}act", body, {"Origin": f"https://{here}"}, 403),
        ("POST", "/x/act", body, {}, 404),
        ("POST", f"{root}state", body, {}, 404),
        ("POST", f"{root}act", body, {"Content_Type": "text/plain"}, 415),
        ("POST", f"{root}act", body, {"Content_Length": "99999999"}, 413),
        ("POST", f"{root}act", "{", {}, 400),
        ("POST", f"{root}act", "[]", {}, 400),
        ("POST", f"{root}act", '{"step": "x", "do": "same"}', {}, 400),
        ("POST", f"{root}act", "[" * 9000, {}, 400),
        ("PUT", f"{root}act", body, {}, 501),
        ("OPTIONS", f"{root}act", None, {"Origin": "http://evil.example"}, 501),
    ):
        assert ask(served, method, path, text, **headers)[0] == status, (method, path, headers)
    assert lines() == []
    assert ask(served, "GET", root, Host=f"localhost:{served.port}")[0] == 200
    assert ask(served, "POST", f"{root}act", body, Host=f"localhost:{served.port}")[0] == 200
    assert len(lines()) == 1


def test_an_answer_to_another_question_is_none(served: RatingServer) -> None:
    act = f"/{served.token}/act"
    first = served.state()["view"]["step"]
    assert ask(served, "POST", act, json.dumps({"step": first, "do": "tie"}))[0] == 200
    status, text, _ = ask(served, "POST", act, json.dumps({"step": first, "do": "both_bad"}))
    assert (status, json.loads(text)["view"]["criterion"]) == (200, "own_1"), "a second tab shows where it is now"
    assert [line["choice"] for line in lines()] == ["tie"]
    ask(served, "POST", act, json.dumps({"step": served.state()["view"]["step"], "do": "back"}))
    assert served.state()["view"]["chosen"] == "tie"
    assert served.state()["view"]["step"] != first


def test_a_full_disk_is_told(served: RatingServer) -> None:
    Path("ratings.jsonl").mkdir()
    body = json.dumps({"step": served.state()["view"]["step"], "do": "left"})
    status, text, _ = ask(served, "POST", f"/{served.token}/act", body)
    assert status == 507
    assert "Could not write 'ratings.jsonl'" in json.loads(text)["error"]
    assert served.state()["answered"] == 0


def test_a_port_that_is_taken(served: RatingServer) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    words = ["--predictions", *NAMES, "--output", "out", "--page", "--port", str(port)]
    with taken, pytest.raises(UsageError, match=rf"Could not listen on 127\.0\.0\.1:{port}: .*; name another --port"):
        main(words)


# --- in a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not browsers.found():
        pytest.skip("no Chromium with its driver, or no selenium: pages are not looked at")
    with browsers.browser() as opened:
        yield opened


READY = "document.getElementById('ask').textContent !== ''"


def numbered(text: str) -> str:
    return f"document.getElementById('count').textContent.startsWith('{text} ')"


def asked(name: str) -> str:
    return f"document.getElementById('ask').textContent.includes({json.dumps(CRITERIA[name])})"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_pair_can_be_read(browser: Browser, served: RatingServer, width: int, dark: bool) -> None:
    browser.open(served.address, width=width, dark=dark)
    browser.until(READY)
    for number in range(3):
        look = browser.look()
        assert look.problems == ()
        assert look.lowest >= browsers.CONTRAST
        assert look.texts > 20
        overlap = browser.read(
            "[...document.querySelectorAll('#bar button')].some((b, i, all) => { const r = b.getBoundingClientRect(); "
            "return r.bottom > innerHeight || r.right > innerWidth || all.slice(0, i).some(o => { const q = "
            "o.getBoundingClientRect(); return Math.min(r.right, q.right) - Math.max(r.left, q.left) > 1 && "
            "Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top) > 1; }); })"
        )
        assert not overlap, "every button can be reached"
        browser.read("window.scrollTo(0, document.documentElement.scrollHeight)")
        under = "document.getElementById('answers').getBoundingClientRect().bottom <= "
        assert browser.read(f"{under}document.getElementById('bar').getBoundingClientRect().top"), "nothing stays hidden"
        if folder := os.environ.get("LIGHTNING_FT_PICTURES"):
            browser.read("window.scrollTo(0, 0)")
            browser.picture(Path(folder) / f"rate_{width}_{'dark' if dark else 'light'}_{number}.png")
        step = browser.read("step")
        browser.press("s")
        browser.until(f"step !== {json.dumps(step)}")
    assert "3 skipped pairs come again" in browser.read("document.getElementById('end-text').textContent")
    assert browser.look().problems == ()


def test_a_session_by_keys_and_buttons(browser: Browser, served: RatingServer) -> None:
    browser.open(served.address, width=1440)
    browser.until(READY)
    view = served.state()["view"]
    assert browser.read("['left-text', 'right-text'].map(id => document.getElementById(id).textContent)") == [
        view["left"], view["right"],
    ]  # fmt: skip
    browser.press("l")
    browser.until(asked("own_1"))
    browser.click("[data-do=both_bad]")
    browser.until(numbered("1 of 3"))
    assert [line["choice"] for line in lines() if line["choice"] != "same"] == ["left", "both_bad"], "on disk at once"
    browser.press("u")
    browser.until("document.getElementById('ask').textContent.includes('So far: both bad')")
    assert browser.read("document.querySelector('[data-do=both_bad]').getAttribute('aria-pressed')") == "true"
    browser.press("3")
    browser.until(asked("helpfulness"))
    for number, (key, name) in enumerate(zip("rtb1", ("own_1", "helpfulness", "own_1", "helpfulness"), strict=True), 1):
        browser.press(key)
        browser.until(numbered("3 of 3") if number == 4 else asked(name))
    assert "Stop ends the rating" in browser.read("document.getElementById('end-text').textContent")
    browser.press("q")
    browser.until("document.getElementById('end-text').textContent.startsWith('Stopped')")
    assert browser.look().problems == ()
    final = {(line["key"], line["criterion"]): line["choice"] for line in lines() if line["choice"] != "same"}
    assert list(final.values()) == ["left", "tie", "right", "tie", "both_bad", "left"]
    left = {line["key"]: line["left"] for line in lines()}
    assert left == {pair.key: left_of(pair, "cyd", 0) for pair in answers_of(read_sides(NAMES), 0)}


def test_data_are_text_and_a_server_that_is_gone_is_told(browser: Browser, served: RatingServer) -> None:
    browser.open(served.address, width=360)
    browser.until(READY)
    shown = []
    for _ in range(3):
        shown += browser.read("['left-text', 'right-text'].map(id => document.getElementById(id).textContent)")
        assert browser.read("document.querySelectorAll('img, b, pre *').length") == 0
        step = browser.read("step")
        browser.press("s")
        browser.until(f"step !== {json.dumps(step)}")
    assert {text for text in shown if "script" in text} == {f"{HOSTILE} z", f"{HOSTILE} y"}
    served.shutdown()
    served.socket.close()
    browser.press("u")
    browser.until("document.getElementById('error').textContent.includes('what was answered is kept')")


def test_the_command_serves_and_then_shows_the_result(
    browser: Browser, served: RatingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--predictions", *NAMES, "--output", "out", "--page", "--port", str(port)]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(words)))
    thread.start()
    said = ""
    while "Rate at" not in said:
        thread.join(0.1)
        said += capsys.readouterr().out
        assert thread.is_alive()
    address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", said)
    assert address
    assert f":{port}/" in address[0]
    browser.open(address[0], width=1440)
    browser.until(READY)
    for number in range(1, 4):
        browser.press("r")
        browser.until(numbered(f"{number} of 3"))
    browser.press("q")
    browser.until("document.getElementById('end-text').textContent.startsWith('Stopped')")
    thread.join(60)
    assert codes == [0]
    out = capsys.readouterr().out
    assert not any(name in said for name in NAMES)
    assert "A: zebra.jsonl" in out
    assert json.loads(Path("out/rating.json").read_text())["criteria"][0]["right"] == 3
