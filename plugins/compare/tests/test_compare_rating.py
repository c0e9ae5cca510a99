"""`rate` in the terminal: what is asked and shown, what comes of it, and that nothing that was said is lost."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_compare.judge import wilson
from lightning_ft_compare.rating.command import main, parser
from lightning_ft_compare.rating.pairs import answers_of, left_of, read_sides
from lightning_ft_compare.rating.summary import coin_p

import lightning_ft
from lightning_ft.data.detect import detect_task
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import Evaluation
from lightning_ft.registry import registry
from lightning_ft.run.folder import RunFolder
from lightning_ft.types import Conversation, Message, Preference, Row, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft.testing.fixtures import Scratch

NAMES = ("zebra", "yak")
WORDS = ["--predictions", "zebra.jsonl", "yak.jsonl", "--output", "out"]
ROWS = 12
SAME = 5
HOSTILE = "\x1b[2J[bold]good[/bold] \u202e"


def answer(name: str, row: int) -> str:
    """The second model is good but in the first row; both say the same in one row."""
    if row == SAME:
        return "same"
    good = (name == "yak") == (row > 0)
    return f"{HOSTILE if good else 'poor'} {row}"


@pytest.fixture
def rate(scratch: Scratch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types keys, a line each (`_`: Enter alone), and gives what was printed."""
    for name in NAMES:
        rows = [{"prompt": f"question {i}", "reference": "r", "prediction": answer(name, i)} for i in range(ROWS)]
        scratch.write(f"{name}.jsonl", rows)
    monkeypatch.setenv("COLUMNS", "80")

    def typed(keys: str, *words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key.strip('_')}\n" for key in keys.split())))
        assert main([*WORDS, *words]) == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out

    return typed


def keys(rater: str = "rater", like: str = "good", seed: int = 0) -> list[str]:
    """What a rater types who likes answers with a word in them, in the order in which they are asked."""
    out = []
    for pair in answers_of(read_sides(["zebra.jsonl", "yak.jsonl"]), seed):
        if not pair.same:
            first, _ = pair.of if left_of(pair, rater, seed) == "A" else pair.of[::-1]
            out.append("l" if like in first else "r")
    return out


def ratings(criterion: str = "overall") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path("out/ratings.jsonl").read_text().splitlines()]
    return [line for line in lines if line["criterion"] == criterion]


def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/rating.json").read_text())
    return found


def test_end_to_end(rate: Callable[..., str], scratch: Scratch) -> None:
    typed = keys()
    assert 0 < typed.count("l") < 11, "both sides"
    out = rate(" ".join([*typed, "_"]))
    before, end = out.split("That was the last one")
    assert not any(name in before for name in (*NAMES, "A:", "B:")), "blind"
    assert "A: zebra.jsonl\nB: yak.jsonl\n" in end
    assert all(len(line) <= 80 for line in (*before.splitlines(), *end.split("Ties,")[0].splitlines()))
    assert "\\x1b[2J[bold]good[/bold] \\u202e" in before, "data are no markup and steer nothing"
    assert "\x1b" not in out
    assert "11 of 11" in before
    shown = re.findall(r"(good|poor)\S* \S*? ?\d+ +\u2502", before)
    assert ["l" if left == "good" else "r" for left in shown[::2]] == typed, "what is noted is what was shown"
    assert {frozenset(pair) for pair in zip(shown[::2], shown[1::2], strict=True)} == {frozenset(("good", "poor"))}
    (one,) = result()["criteria"]
    assert result()["models"] == {"A": "zebra.jsonl", "B": "yak.jsonl"}
    counts = {name: one[name] for name in ("rows", "ratings", "a", "b", "tie", "both_bad", "same", "skipped")}
    assert counts == {"rows": 12, "ratings": 12, "a": 1, "b": 10, "tie": 0, "both_bad": 0, "same": 1, "skipped": 0}
    assert one["models"]["A"]["win_rate"] == pytest.approx(1.5 / 12)
    assert (one["low"], one["high"]) == pytest.approx(wilson(1.5, 12, 0.95))
    assert one["better"] == "B"
    assert "overall    B        87.5 %  [59.8 %, 97.1 %]  better" in end
    assert (one["left"], one["right"]) == (typed.count("l"), typed.count("r"))
    assert one["side_p"] == coin_p(one["left"], one["right"])


def test_preferences_are_what_training_reads(rate: Callable[..., str], scratch: Scratch) -> None:
    typed = keys()
    out = rate(" ".join([*typed[:-3], "t", "b", typed[-1], "_"]))
    rows = scratch.read("out/preferences.jsonl")
    assert "Preferences: 9 rows by overall (left out: 1 ties, 1 both bad, 1 same)" in out
    assert len(rows) == 9
    task = detect_task([Row(row, "out/preferences.jsonl", i) for i, row in enumerate(rows, 1)], registry().tasks)
    assert task.name == "preference"
    for row in rows:
        example = task.cls().format(row)
        assert isinstance(example, Preference)
        assert (example.prompt[-1].role, example.prompt[-1].content) == ("user", row["prompt"])
        assert "good" in example.chosen[0].content
        assert "poor" in example.rejected[0].content
    options: dict[str, Any] = {"verdict_rows": 0, "max_steps": 2, "log_every": 1, "preflight": False}
    lightning_ft.fit(model="embedded", data="out/preferences.jsonl", objective="dpo", output="trained", **options)
    assert [line["step"] for line in scratch.read("trained/metrics.jsonl") if "reward_margin" in line] == [1, 2]


def test_back_skip_show_again_and_what_is_no_key(rate: Callable[..., str]) -> None:
    typed = keys()
    out = rate(" ".join(["u", "x", "v", "t", "u", typed[0], "s", "s", *typed[3:], "u", "b", "q"]))
    assert "This is the first one." in out
    assert "overall: Which answer is better, all in all?  (so far: tie)" in out
    assert out.count(" 1 of 11 ") == 3, "at first, for v, and gone back to"
    assert "9 of 11 pairs are rated, 2 are left: type the same again with --output out to go on" in out
    assert not any(name in out for name in NAMES), "not the end"
    assert not Path("out/rating.json").exists()
    assert [line["choice"] for line in ratings()[:2]] == ["tie", {"l": "left", "r": "right"}[typed[0]]]
    assert ratings()[-1]["choice"] == "both_bad", "the last answer was taken back"
    out = rate("t t")
    assert "11 pairs to rate, 9 of them rated earlier" in out
    assert "10 of 11" in out
    (one,) = result()["criteria"]
    assert (one["tie"], one["both_bad"], one["skipped"]) == (2, 1, 0)


def test_criteria_are_asked_one_by_one_and_gone_on_with(rate: Callable[..., str]) -> None:
    own = "Is it as short as it can be?"
    words = ("--criteria", "accuracy", own, "--rows", "2")
    out = rate("l t u r r", *words)
    assert f"{own} (2 of 2)\n" in out
    assert f"{own} (2 of 2)  (so far: tie)" in out
    assert "accuracy (1 of 2): Is what the answer says true" in out
    assert "1 of 2 pairs are rated, 1 are left" in out, "the second one by one criterion"
    assert [line["choice"] for line in ratings("own_1")] == ["tie", "right"]
    out = rate("b", *words)
    assert out.count(own) == 2, "one question, and what own_1 is"
    found = result()["criteria"]
    assert [(one["criterion"], one["question"], one["rows"]) for one in found][1] == ("own_1", own, 2)
    assert result()["preferences"]["not_rated"] == 10
    with pytest.raises(UsageError, match=r"Expected --criteria as 'out' was begun with \(accuracy, own_1\), got overall"):
        rate("l", "--rows", "2")


def test_several_raters_and_a_result_in_between(rate: Callable[..., str]) -> None:
    rate(" ".join(keys("ann")), "--rater", "ann")
    sides = [line["left"] for line in ratings() if line["choice"] != "same"]
    rate(" ".join(keys("bob", like="poor")[:4]), "--rater", "bob")
    before = Path("out/rating.json").read_text()
    assert json.loads(before)["raters"] == ["ann"]
    out = rate("", "--result")
    assert "A: zebra.jsonl" in out
    assert result()["raters"] == ["ann", "bob"]
    (one,) = result()["criteria"]
    assert one["agreement"] == 0
    assert "two raters agree in 0.0 %" in out
    assert one["rows"] == 12, "a pair counts once, however many rated it"
    assert one["ratings"] > one["rows"]
    assert result()["preferences"]["divided"] == 4
    bob = [line["left"] for line in ratings() if line["rater"] == "bob" and line["choice"] != "same"]
    assert len(bob) == 4
    assert 0 < sides.count("A") < 11


def test_sides_follow_neither_file_nor_rater(rate: Callable[..., str]) -> None:
    pairs = answers_of(read_sides(["zebra.jsonl", "yak.jsonl"]), 0)
    assert [pair.row for pair in pairs] != [f"zebra.jsonl:{i}" for i in range(1, ROWS + 1)]
    drawn = {(rater, seed): "".join(left_of(pair, rater, seed) for pair in pairs) for rater in "ab" for seed in (0, 1)}
    assert len(set(drawn.values())) == 4
    many = "".join(left_of(pair, f"rater {i}", 0) for pair in pairs for i in range(200))
    assert 1100 < many.count("A") < 1300, "a fair coin: 1200 +- 4 standard deviations of 24.5"


def test_a_fair_coin_by_hand() -> None:
    assert coin_p(8, 2) == coin_p(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert coin_p(3, 3) == 1
    assert coin_p(0, 6) == pytest.approx(2 / 64)


def test_who_always_says_left_is_noticed(rate: Callable[..., str]) -> None:
    out = rate(" ".join("l" * 11))
    assert "left preferred 11 and right 0 times (p < 0.001): a side seems to be favoured" in out


def evaluations(turns: Sequence[Message] = (Message("user", "q"),)) -> None:
    """Two folders as `evaluate` writes them."""
    for name in NAMES:
        rows = []
        for i in range(3):
            example = Conversation((*turns, Message("assistant", "ref")))
            rows.append(ScoredRow(f"f:{i}", example, nll=1.0, tokens=1, prediction=f"{name} {i}", references=("ref",)))
        Evaluation.of(["loss"], rows).write(Path(name))


def test_folders_of_evaluations_and_prompts_of_several_turns(rate: Callable[..., str], scratch: Scratch) -> None:
    turns = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    evaluations(turns)
    sys.stdin = io.StringIO("l\nr\nl\n")
    assert main(["--models", *NAMES, "--output", "rated"]) == 0
    rows = scratch.read("rated/preferences.jsonl")
    assert len(rows) == 3
    entry = detect_task([Row(row, "f", i) for i, row in enumerate(rows, 1)], registry().tasks)
    example = entry.cls().format(rows[0])
    assert isinstance(example, Preference)
    assert [(turn.role, turn.content) for turn in example.prompt] == [(turn.role, turn.content) for turn in turns]


def test_models_are_evaluated_without_their_names(
    rate: Callable[..., str], scratch: Scratch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(lightning_ft.__file__).parent / "assets" / "base"
    for name in NAMES:
        shutil.copytree(base, name)
    data = scratch.write("rows.jsonl", [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(6)])
    words = ["--models", *NAMES, "--data", data, "--rows", "3", "--max_new_tokens", "3", "--output", "rated"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "A: evaluating\n" in said.err
    before, end = said.out.split("A: zebra")
    assert not any(name in said.err + before for name in NAMES)
    assert "0 pairs to rate" in before, "the same model answers the same"
    assert "3 same" in end
    assert main(words) == 0, "and goes on with the evaluations that are there"
    assert "evaluating" not in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"Expected --rows as 'rated' was begun with \(3\), got 4"):
        main([*words[:6], "4", *words[7:]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "zebra"], "at least two models, the baseline first; got 'zebra' alone"),
        (["--models", "zebra", "yak", "embedded", "--data", "d"], "to name two models, got 3; rate them in pairs"),
        (["--models", "zebra", "./zebra"], "'zebra' and './zebra', which are one"),
        (["--models", "zebra", "embedded"], "Expected --data FILE for 'embedded'"),
        (["--models", "zebra", "other"], "to be evaluated on the same rows, got 3 and 2 rows"),
        (["--models", "silent", "mute"], "Expected rows that both models answered, got none; name a metric"),
        (["--predictions", "a.jsonl", "a.jsonl"], "two different files; got a.jsonl and a.jsonl"),
        (["--predictions", "a.jsonl"], "two different files; got a.jsonl"),
        (["--predictions", "a.jsonl", "b.jsonl"], "to be evaluated on the same rows, got 1 and 2 rows"),
        (["--predictions", "a.jsonl", "c.jsonl"], "in the same order, got 'a.jsonl:1' and 'c.jsonl:1'"),
        (["--predictions", "a.jsonl", "empty.jsonl"], "empty.jsonl: expected at least one row"),
        (["--predictions", "a.jsonl", "bare.jsonl"], "bare.jsonl:1: expected 'prompt' to be the text that was asked"),
        (["--predictions", "a.jsonl", "b.jsonl", "--data", "d"], "--predictions without --data, as the answers"),
        (["--predictions", "a.jsonl", "b.jsonl", "--models", "zebra", "yak"], "--predictions without --models, as the answers"),
        (["--predictions", "a.jsonl", "b.jsonl", "--top_k", "0"], "--predictions without --top_k, as the answers"),
        (["--models", "zebra", "yak", "--data", "d"], "a model that is not evaluated yet with --data, got evaluations alone"),
        (["--models", "zebra", "yak", "--task", "instruct"], "not evaluated yet with --task, got evaluations alone"),
        (["--models", "zebra", "yak", "--temperature", "0"], "not evaluated yet with --temperature, got evaluations alone"),
        (["--models", "zebra", "yak", "--rows", "0"], "--rows to be at least 1; got 0"),
        (["--models", "zebra", "yak", "--rater", " "], "--rater to be a name"),
        (["--models", "zebra", "yak", "--level", "95"], "--level to be from 0.5 to below 1; got 95"),
        (["--models", "zebra", "yak", "--port", "80"], "--port 80 together with --page"),
        (["--models", "zebra", "yak", "--page", "--port", "70000"], "--port to be from 0 to 65535; got 70000"),
        (["--models", "zebra", "yak", "--criteria", "overal"], "Did you mean 'overall'?"),
        (["--models", "zebra", "yak", "--result"], "Expected ratings in 'out' for --result, got none"),
        (["--models", "zebra", "yak", "--output", "full"], "a new folder or that of a rating, got 'full'"),
        (["--models", "zebra", "yak", "--output", "rated"], "but 'rated' has others; name another"),
        (["--models", "zebra", "yak", "--output", "broken"], "'broken/setup.json' to be what a rating of version 1 wrote"),
        (["--models", "zebra", "yak", "--output", "held"], "Rating 'held' is in use by process"),
    ],
)
def test_wrong_input_is_a_sentence(scratch: Scratch, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations()
    for name, count in (("other", 2), ("silent", 1), ("mute", 1)):
        example = Conversation((Message("user", "q"), Message("assistant", "ref")))
        told = "x" if name == "other" else None
        rows = [ScoredRow(f"f:{i}", example, nll=1.0, tokens=1, prediction=told, references=("ref",)) for i in range(count)]
        Evaluation.of(["loss"], rows).write(Path(name))
    for folder in ("full", "broken"):
        Path(folder).mkdir()
        Path(folder, "setup.json" if folder == "broken" else "file").write_text("{}")
    one = {"prompt": "p", "prediction": "x"}
    scratch.write("a.jsonl", [one])
    scratch.write("b.jsonl", [one, one])
    scratch.write("c.jsonl", [{**one, "prompt": "another"}])
    scratch.write("d.jsonl", [{**one, "prediction": "y"}])
    scratch.write("empty.jsonl", [])
    scratch.write("bare.jsonl", [{"prediction": "x"}])
    monkeypatch.setattr(sys, "stdin", io.StringIO("t\n"))
    assert main(["--predictions", "a.jsonl", "d.jsonl", "--output", "rated"]) == 0
    held = RunFolder(Path("held"))
    held.lock()
    with pytest.raises(UsageError) as caught:
        main([*words, *([] if "--output" in words else ["--output", "out"])])
    held.release()
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert caught.value.exit_code == 2
    assert not Path("out").exists() or any(Path("out").iterdir())


def test_a_wrong_file_spoils_no_folder(rate: Callable[..., str], scratch: Scratch) -> None:
    evaluations()
    scratch.write("rows.jsonl", [])
    base = Path(lightning_ft.__file__).parent / "assets" / "base"
    with pytest.raises(DataError):
        main(["--models", str(base), "zebra", "--data", "rows.jsonl", "--output", "new"])
    sys.stdin = io.StringIO("")
    assert main(["--models", *NAMES, "--output", "new"]) == 0


def test_the_examples_of_the_readme_are_commands() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^lightning-ft rate (.*)$", text, re.MULTILINE)
    assert len(found) > 3
    for line in found:
        parser().parse_args(shlex.split(line))
    section = text.split("## Blind rating by people")[1].split("\n## ")[0]
    assert set(re.findall(r"--\w+", section)) <= set(re.findall(r"--\w+", parser().format_help()))


# The command as a process: in a terminal of its own, where a key needs no Enter, and killed in the middle.

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from lightning_ft_compare.rating.command import main; sys.exit(main(sys.argv[1:]))",
]


def test_single_keys_in_a_terminal_outlive_a_kill(rate: Callable[..., str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *WORDS], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        start, end = len(seen), time.monotonic() + 240
        while text not in seen[start:]:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 1).decode("latin-1")

    for number, key in enumerate((b"l", b"\x1b[C", b"T", b"\x1bOD"), 1):
        until(f"{number} of 11")
        until("[q] stop [?] > ")
        os.write(ours, key)
    until("5 of 11")
    with pytest.raises(UsageError, match="Rating 'out' is in use by process"):
        rate("l")
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    os.close(ours)
    assert not any(name in seen for name in NAMES)
    assert [line["choice"] for line in ratings() if line["choice"] != "same"] == ["left", "right", "tie", "left"]
    with Path("out/ratings.jsonl").open("a") as file:
        file.write('{"rater": "rater", "row')  # an answer that the kill cut off
    out = rate(" ".join("b" * 7))
    assert "11 pairs to rate, 4 of them rated earlier" in out
    assert " 5 of 11 " in out
    (one,) = result()["criteria"]
    assert (one["left"], one["right"], one["tie"], one["both_bad"], one["same"]) == (2, 1, 1, 7, 1)
