"""The command on real models: the embedded one and two adapters on it; and the page that it leaves, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_compare import Judge, compare
from lightning_ft_compare.command import main

from lightning_ft import endpoint, evaluate, fit
from lightning_ft.errors import CheckFailedError, DataError, UsageError
from lightning_ft.testing import browser as browsers
from lightning_ft.testing.chat_server import ChatServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.testing.browser import Browser
    from lightning_ft.testing.fixtures import Scratch

CLASSES = ("refund", "delivery", "cancel_order", "a class whose name is so long that it does not fit into a column")
OPTIONS: dict[str, Any] = {
    "epochs": 9, "max_steps": 6, "batch_size": 4, "precision": "fp32", "verdict_rows": 0, "preflight": False, "packing": "off",
    "save_every": 0, "eval_every": 3, "log_every": 1,
}  # fmt: skip


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Classified texts of different length and kind."""
    return [
        {"text": f"Where is order {i}?" + " Please tell me." * (i % 5), "label": CLASSES[i % 4],
         "task": ["support", "sales"][i % 2], "split": "validation" if i % 6 == 5 else "train"}
        for i in range(start, start + count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Path:
    """A folder with data and two runs: one that learns, and one that learns the wrong classes."""
    folder = tmp_path_factory.mktemp("compare")
    right = rows(24)
    wrong = [{**row, "label": CLASSES[(i + 1) % 4]} for i, row in enumerate(right)]
    for name, values in (("right", right), ("wrong", wrong), ("held_out", rows(20, 24))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    for name, rate in (("right", 3e-3), ("wrong", 1e-3)):
        fit(model="embedded", data=folder / f"{name}.jsonl", output=str(folder / f"run_{name}"), learning_rate=rate, **OPTIONS)
    return folder


def verdicts(_: str, body: dict[str, Any]) -> str:
    """The judge prefers the longer answer, and always answers in the format."""
    text = body["messages"][-1]["content"]
    if '"answer_A"' not in text:
        return "ready"
    shown = json.loads(text[text.index('{\n "prompt"') :])
    a, b = len(shown["answer_A"]), len(shown["answer_B"])
    return json.dumps(dict.fromkeys(("relevance", "own_1"), "A" if a > b else "B" if b > a else "tie"))


@pytest.fixture(scope="module")
def report(place: Path) -> Path:
    """The folder of a comparison of all three models, with everything that a report can hold."""
    with ChatServer(verdicts) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setattr(endpoint, "PAUSES", (0.0,))
        judge = Judge(
            f"{server.root}/good", "m-1", ["relevance", "Is the answer as short as it can be, and no shorter than that?"]
        )
        found = compare(
            ["embedded", str(place / "run_right"), str(place / "run_wrong")], place / "held_out.jsonl", output=place / "report",
            max_new_tokens=6, samples=300, judge=judge, fail_if_worse=["loss"],
        )  # fmt: skip
    assert found.folder is not None
    return found.folder


def test_models_are_evaluated_and_compared(place: Path, report: Path) -> None:
    found = json.loads((report / "comparison.json").read_text())
    assert [model["letter"] for model in found["models"]] == ["A", "B", "C"]
    assert [model["run"] for model in found["models"]] == [None, str(place / "run_right"), str(place / "run_wrong")]
    assert found["rows"] == 20
    loss = found["pairs"][0]["differences"][0]
    assert (loss["comparison"]["metric"], loss["word"]) == ("loss", "better")
    own = evaluate(str(place / "run_right"), place / "held_out.jsonl", output=str(place / "own"), max_new_tokens=6)
    assert loss["comparison"]["tuned"] == pytest.approx(own.metrics["loss"])
    assert sorted(path.name for path in report.iterdir()) == [
        "a_embedded", "b_run-right", "c_run-wrong", "comparison.json", "report.html", "report.md", "rulings.jsonl",
    ]  # fmt: skip
    assert [(group["name"], group["rows"]) for group in found["pairs"][0]["by_group"]] == [("sales", 10), ("support", 10)]
    assert [confusion["letter"] for confusion in found["confusions"]] == ["A", "B", "C"]
    assert sum(sum(row) for row in found["confusions"][0]["counts"]) == 20
    page = (report / "report.html").read_text()
    assert page.count("<polyline") >= 2 * 4, "loss, validation loss, rate and norm of both runs"


def test_evaluations_are_read_instead_of_made_again(
    place: Path, report: Path, scratch: Scratch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(report / name) for name in ("a_embedded", "b_run-right")]
    with pytest.raises(UsageError, match="Expected --by to be a column that rows"):
        main(["--models", *names, "--by", "nothing", "--samples", "300"])
    assert not Path("runs").exists(), "nothing came into it"
    for given in (("--max_rows", "5"), ("--temperature", "0.5"), ("--data", str(place / "held_out.jsonl"))):
        with pytest.raises(UsageError, match=f"a model that is not evaluated yet with {given[0]}, got evaluations alone"):
            main(["--models", *names, *given])
    assert main(["--models", *names, "--samples", "300", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    before = json.loads((report / "comparison.json").read_text())
    assert again["pairs"][0]["differences"] == before["pairs"][0]["differences"]
    assert again["folder"] == "runs/compare_1"
    with pytest.raises(CheckFailedError, match="is worse than A in loss"):
        main(["--models", *reversed(names), "--samples", "300", "--json", "c.json", "--fail-if-worse", "loss"])
    assert json.loads(Path("c.json").read_text())["refusals"]
    assert Path("runs/compare_2/report.html").is_file()


def test_a_model_beside_an_evaluation_has_to_see_the_same_rows(place: Path, report: Path, scratch: Scratch) -> None:
    shutil.copy(place / "held_out.jsonl", "copy.jsonl")
    words = ["--models", str(report / "a_embedded"), str(place / "run_right"), "--max_new_tokens", "6", "--output", "out"]
    assert main([*words, "--data", "copy.jsonl"]) == 0, "the same rows in a file of another name"
    with pytest.raises(UsageError, match="to be evaluated on the same rows, got 20 and 5 rows"):
        main([*words[:-1], "out2", "--data", "copy.jsonl", "--max_rows", "5"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "embedded"], "at least two models, the baseline first; got 'embedded' alone"),
        ([], "at least two models, the baseline first; got none"),
        (["--models", "embedded", "embedded", "--data", "d"], "'embedded' and 'embedded', which are one"),
        (["--models", "embedded", "nowhere", "--data", "d"], "Expected --models to be a model folder"),
        (["--models", "embedded", "other/model"], "Expected --data FILE for 'embedded'"),
        (["--models", "embedded", "other/model", "--data", "d", "--metrics", "los"], "Did you mean 'loss'?"),
        (["--models", "embedded", "other/model", "--data", "d", "--fail_if_worse", "lss"], "Did you mean 'loss'?"),
        (
            ["--models", "embedded", "other/model", "--data", "d", "--fail_if_worse", "lss"],
            "Expected --fail_if_worse to be one",
        ),
        (["--models", "embedded", "other/model", "--data", "d", "--task", "{name: classify, labels: one}"], "got one."),
        (["--models", "embedded", "other/model", "--data", "d", "--max_lost", "few"], "--max_lost to be a number; got 'few'"),
        (["--models", "embedded", "other/model", "--data", "d", "--fail_if_worse", "loss:much"], "got 'much', as in loss:0.05"),
        (
            ["--models", "embedded", "other/model", "--data", "d", "--fail_if_worse", "loss:-1"],
            "a number of at least 0; got '-1'",
        ),
        (["--models", "embedded", "other/model", "--data", "d", "--fail_if_worse", "loss:"], "a number of at least 0; got ''"),
        (["--models", "embedded", "other/model", "--data", "d", "--samples", "9"], "--samples to be at least 100"),
        (["--models", "embedded", "other/model", "--data", "d", "--level", "95"], "--level to be from 0.5 to below 1; got 95"),
        (
            ["--models", "embedded", "other/model", "--data", "d", "--json", "no/where.json"],
            "--json to name a file in a folder",
        ),
        (["--models", "embedded", "other/model", "--data", "d", "--output", "full"], "'full', which holds something"),
        (["--models", "embedded", "other/model", "--data", "d", "--outputs", "x"], "Did you mean '--output'?"),
    ],
)
def test_wrong_input_is_a_sentence_before_anything_runs(scratch: Scratch, words: list[str], said: str) -> None:
    Path("full").mkdir()
    scratch.write("full/file", ["x"])
    with pytest.raises(UsageError) as caught:
        main(words)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert str(caught.value).count("\n") == 0
    assert not Path("runs").exists()


def test_a_file_without_rows(scratch: Scratch, place: Path) -> None:
    scratch.write("empty.jsonl", [])
    with pytest.raises(DataError):
        main(["--models", "embedded", str(place / "run_right"), "--data", "empty.jsonl", "--output", "out"])


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from lightning_ft_compare.command import parser; parser().format_help(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_gate_is_explained_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "exit 3 where a model is worse than the baseline by more than MARGIN" in said
    assert "whole interval of the difference lies beyond it" in said


# --- in a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not browsers.found():
        pytest.skip("no Chromium with its driver, or no selenium: pages are not looked at")
    with browsers.browser() as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("which", ["report", "run_right"])
def test_nothing_overlaps_or_is_clipped_or_pale(browser: Browser, report: Path, which: str, width: int, dark: bool) -> None:
    browser.open(report.parent / which / "report.html", width=width, dark=dark)
    look = browser.look()
    assert look.problems == ()
    assert look.texts > 100
    assert look.lowest >= browsers.CONTRAST


@pytest.mark.parametrize("which", ["report", "run_right"])
def test_every_axis_has_a_unit(browser: Browser, report: Path, which: str) -> None:
    browser.open(report.parent / which / "report.html", width=1440)
    units = browser.read(
        "[...document.querySelectorAll('svg')].map(s => [...s.querySelectorAll('text.soft')].map(t => t.textContent))"
    )
    assert len(units) > (8 if which == "report" else 4)
    assert all(len(words) >= 2 and all(words) for words in units), units


BAD = """<!DOCTYPE html><html><body style="margin:0"><p style="color:#999;background:#fff">pale</p>
<svg viewBox="0 0 100 50" style="width:100px;height:50px"><text x="5" y="20">one text</text><text x="20" y="22">another</text>
<text x="70" y="45">outside of it</text></svg>
<table><tr><td style="max-width:20px;white-space:nowrap;overflow:hidden">far too long for it</td></tr></table>
<div style="width:2000px">wide</div><script>console.error("broken")</script></body></html>"""


def test_a_bad_page_is_seen_to_be_bad(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(BAD)
    browser.open(tmp_path / "bad.html", width=360)
    problems = "\n".join(browser.look().problems)
    for said in (
        "the page is 2000 wide", 'overlaps "one text" in a chart: another', "clipped in a chart: outside of it",
        "leaves its cell: far too long", "contrast 2.8", "broken",
    ):  # fmt: skip
        assert said in problems, problems
