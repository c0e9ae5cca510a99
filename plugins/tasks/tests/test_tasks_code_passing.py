"""pass@k: its estimator against exact fractions, and its programs really run."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from math import comb
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.code import Code
from lightning_ft_tasks.code_metrics import sandbox
from lightning_ft_tasks.code_metrics.passing import PassAt1, PassAt5, PassAt10, PassAt100, checks_of, pass_at_k

from lightning_ft.cli.score import read_predictions
from lightning_ft.evaluation import Evaluation
from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, Message, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lightning_ft.metric import Metric

with sandbox.allow():
    NONE_HERE = sandbox.obstacle()
contained = pytest.mark.skipif(NONE_HERE is not None, reason=f"no sandbox on this machine: {NONE_HERE}")
RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n"


@pytest.fixture
def allowed() -> Iterator[None]:
    with sandbox.allow():
        yield


def row(prediction: str | None, number: int = 1, prompt: str | None = None, **meta: Any) -> ScoredRow:
    example = Conversation((Message("user", prompt or "Add two numbers."), Message("assistant", RIGHT)), meta=meta)
    return ScoredRow(f"f:{number}", example, prompt=prompt, prediction=prediction, references=(RIGHT,))


def answers(*predictions: str, task: str = "0", first: int = 1) -> list[ScoredRow]:
    meta = {"test": TEST, "entry_point": "add", "task_id": task}
    return [row(text, number, **meta) for number, text in enumerate(predictions, first)]


def value(metric: type[Metric], rows: list[ScoredRow]) -> float:
    return Evaluation.of([metric], rows).metrics[metric.name]


def test_the_estimator_is_the_exact_fraction() -> None:
    for n in range(1, 13):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), abs=1e-15)
    exact = 1 - Fraction(comb(10_000 - 3, 100), comb(10_000, 100))
    assert pass_at_k(10_000, 3, 100) == pytest.approx(float(exact), rel=1e-12)


def test_the_estimator_is_the_mean_over_all_draws() -> None:
    """Of 5 answers 2 pass; 7 of the 10 pairs have one that does, as 3 of the 5 that fail make 3 pairs."""
    passed = [True, True, False, False, False]
    draws = list(itertools.combinations(passed, 2))
    assert pass_at_k(5, 2, 2) == pytest.approx(sum(map(any, draws)) / len(draws)) == pytest.approx(0.7)


@contained
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("metric", [PassAt1, PassAt5, PassAt10, PassAt100])
def test_it_keeps_the_contract(metric: type[PassAt1]) -> None:
    n = max(6, metric.k)
    check_metric(metric, answers(*[RIGHT] * n), answers(*[WRONG] * (n - 1), "", task="1", first=n + 1))


@contained
@pytest.mark.usefixtures("allowed")
def test_answers_to_one_task_share_its_estimate() -> None:
    """Of task 0 one of 3 passes, of task 1 both: pass@1 is (1/3 + 1) / 2. 2 of 3 pairs have it: pass@2 is (2/3 + 1) / 2."""
    rows = answers(WRONG, RIGHT, "") + answers(RIGHT, f"Here:\n```python\n{RIGHT}```", task="1", first=4)
    result = Evaluation.of([PassAt1], rows)
    assert result.tables["pass_at_1"].flatten().tolist() == pytest.approx([1 / 3, 1, 0, 0, 0, 0, 1, 1, 0, 0])
    assert result.metrics["pass_at_1"] == pytest.approx((1 / 3 + 1) / 2)
    two = type("PassAt2", (PassAt1,), {"k": 2, "name": "pass_at_2"})
    assert value(two, rows) == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match=r"^f:1: expected 5 or more answers to the task for pass_at_5, got 3$"):
        value(PassAt5, rows)


@contained
@pytest.mark.usefixtures("allowed")
def test_without_a_task_id_equal_prompts_are_one_task() -> None:
    tests: dict[str, Any] = {"tests": ["assert add(1, 2) == 3"]}
    assert value(PassAt1, [row(RIGHT, 1, "a", **tests), row(WRONG, 2, "a", **tests), row(WRONG, 3, "b", **tests)]) == 0.25
    assert value(PassAt1, [row(RIGHT, 1, **tests), row(WRONG, 2, **tests), row(WRONG, 3, **tests)]) == pytest.approx(1 / 3)


@contained
@pytest.mark.usefixtures("allowed")
def test_a_body_is_run_with_the_prompt_that_it_completes() -> None:
    prompt = 'from math import pi\n\ndef area(r):\n    """Of a circle."""\n'
    meta: dict[str, Any] = {"test": "def check(f):\n    assert 3.1 < f(1) < 3.2\n", "entry_point": "area"}
    for answer in ("    return pi * r * r\n", "return pi * r * r", "def area(r):\n    return pi * r * r"):
        assert value(PassAt1, [row(answer, prompt=prompt, **meta)]) == 1, answer
    for answer in (
        "    return r",
        "pass",
        "area = 3",
        "def area(r): return pi * r * r\nraise SystemExit",
        "def check(f): pass",
    ):
        assert value(PassAt1, [row(answer, prompt=prompt, **meta)]) == 0, answer


@contained
@pytest.mark.usefixtures("allowed")
def test_reference_answers_of_mbpp_pass(shared_data: Path) -> None:
    rows, task = [], Code()
    for number, line in enumerate((shared_data / "mbpp/mbpp.jsonl").read_text(encoding="utf-8").splitlines()[:40], 1):
        example = task.format(json.loads(line))
        assert isinstance(example, Conversation)
        rows.append(ScoredRow(f"mbpp.jsonl:{number}", example, prompt="", prediction=example.messages[-1].content))
    assert value(PassAt1, rows) == 1
    for one in rows:
        one.prediction = f"{one.prediction}\nraise ValueError"
    assert value(PassAt1, rows) == 0


@contained
def test_score_reads_a_file_with_several_answers_to_a_task(tmp_path: Path) -> None:
    from lightning_ft.cli import score

    file = tmp_path / "answers.jsonl"
    lines = [
        {"task_id": i // 2, "prediction": text, "test": TEST, "entry_point": "add"} for i, text in enumerate([RIGHT, WRONG] * 2)
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with sandbox.allow():
        assert value(PassAt1, read_predictions(str(file))) == 0.5
        assert score.main(["--predictions", str(file), "--metrics", "pass_at_1"]) == 0


@contained
def test_the_flag_is_the_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_ft.cli import main
    from lightning_ft.cli.evaluate import ALLOW_CODE

    assert ALLOW_CODE == sandbox.PERMISSION
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"task_id": 1, "prediction": RIGHT, "test": TEST, "entry_point": "add"}) + "\n")
    words = ["score", "--predictions", str(file), "--metrics", "pass_at_1"]
    assert main(words) == 2
    assert "--allow-code-execution" in capsys.readouterr().err
    assert main([*words, "--allow-code-execution"]) == 0
    assert "100.00 %" in capsys.readouterr().out
    monkeypatch.delenv(ALLOW_CODE, raising=False)


def test_rows_are_looked_at_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**meta: Any) -> str:
        with pytest.raises(ValueError, match=r"^f:1: ") as error:
            PassAt1().check(row(None, **meta))
        return str(error.value).removeprefix("f:1: ")

    assert said() == "expected a column 'test' or 'tests' with the tests of the answer, got none"
    assert said(test=TEST) == "expected a column 'entry_point', as 'test' defines check() and does not call it, got none"
    assert said(test=TEST, entry_point="f(1)") == "expected 'entry_point' to be the name of a function, got 'f(1)'"
    assert said(test="assert (") == "expected 'test' to hold Python code, got 'assert ('"
    assert said(test=["assert f()"]) == "expected 'test' to hold Python code, got a list"
    assert said(tests="assert f()") == "expected 'tests' to be a list of statements, got a string"
    assert said(test_list=["assert f()", 1]) == "expected 'test_list' to hold Python code, got a number"
    assert said(tests=["f()"], test_setup_code="x =") == "expected 'test_setup_code' to hold Python code, got 'x ='"
    assert said(tests=["f()"], language="go") == "expected 'language' to be one of python, got 'go'"
    monkeypatch.delenv(sandbox.PERMISSION, raising=False)
    assert said(tests=["f()"]).startswith("expected permission to run code that a model wrote; type --allow-code-execution")


def test_too_few_answers_to_a_task_are_told_before_any(allowed: None) -> None:
    from lightning_ft.errors import DataError
    from lightning_ft.scoring import check_rows

    rows = [*answers("", "", "", "", "", task="1"), *answers("", "", task="2", first=6)]
    check_rows([PassAt1()], rows, {"text"})
    with pytest.raises(DataError, match=r"^f:6: expected 5 or more answers to the task for pass_at_5, got 2"):
        check_rows([PassAt5()], rows, {"text"})


def test_and_so_before_a_model_answers(allowed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_ft.api import evaluate
    from lightning_ft.errors import DataError
    from lightning_ft.run import stages

    data = tmp_path / "tasks.jsonl"
    line = {"prompt": "Write add.", "code": RIGHT, "tests": ["assert add(1, 2) == 3"], "task_id": "1"}
    data.write_text(2 * (json.dumps(line) + "\n"), encoding="utf-8")
    monkeypatch.setattr(stages, "score_examples", lambda *_, **__: pytest.fail("it answered"))
    with pytest.raises(DataError, match="expected 5 or more answers to the task for pass_at_5, got 2"):
        evaluate("embedded", data=str(data), task="code", metrics=["pass_at_5"])


def test_without_permission_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sandbox.PERMISSION, raising=False)
    monkeypatch.setattr(sandbox, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="expected permission to run code"):
        value(PassAt1, answers(RIGHT))


def test_a_row_that_was_not_prepared_has_no_value() -> None:
    with pytest.raises(
        ValueError, match=r"^f:1: expected `prepare` to have run the answer for metric pass_at_1, got a new row$"
    ):
        PassAt1().statistics(row(RIGHT))


def test_the_test_calls_the_entry_point_where_it_is_to() -> None:
    assert checks_of(row(None, test=TEST, entry_point="add")) == [TEST, "check(add)"]
    assert checks_of(row(None, test="assert add(1, 1) == 2", entry_point="add")) == ["assert add(1, 1) == 2"]
    assert checks_of(row(None, test_list=["assert 1"], test_setup_code="import os")) == ["import os", "assert 1"]
