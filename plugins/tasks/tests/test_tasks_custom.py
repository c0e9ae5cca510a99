from __future__ import annotations

from typing import Any

import pytest
from lightning_ft_tasks.custom import Custom

from lightning_ft.errors import UsageError
from lightning_ft.run.verdict import names_for
from lightning_ft.testing.checks import TASK_CLAUSES

ROW = {"text": "Guten Tag", "language": "English", "translation": "Good day", "also": ["Hello"], "task": "greet", "n": 3}


def test_keeps_the_contract() -> None:
    for name, clause in TASK_CLAUSES.items():
        if name != "columns":  # it is never found by columns
            clause(Custom(), Custom.samples)
    assert not any(Custom.matches(frozenset(row)) for row in (*Custom.samples, {}))


def test_templates_and_further_answers() -> None:
    task = Custom(
        user="To {language} {{now}}, {n} times: {text}", assistant="{translation}.", system="You translate to {language}.",
        references="also",
    )  # fmt: skip
    example = task.format(ROW)
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "You translate to English."),
        ("user", "To English {now}, 3 times: Guten Tag"),
        ("assistant", "Good day."),
    ]
    assert example.meta == {"also": ["Hello"], "task": "greet", "references": ("Hello",)}
    braces = Custom(user="{text}").format({"text": "{answer} {x.y}", "answer": "A"})
    assert braces.messages[0].content == "{answer} {x.y}", "braces in the data are text"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a.b}", r"--task\.user to hold the name of a column and nothing else, got '\{a\.b\}'"),
        ("{a[0]}", r"got '\{a\[0\]\}'"),
        ("{a!r}", r"got '\{a!r\}'"),
        ("{a:>10}", r"got '\{a:>10\}'"),
        ("{}", r"got '\{\}'"),
        ("{0}", r"got '\{0\}'"),
        ("{a", r"got '\{a': expected '\}' before end of string"),
        ("a}", r"got 'a\}': Single '\}' encountered"),
        (3, r"--task\.user to be a text with columns in braces, .* got 3"),
    ],
)
def test_braces_hold_a_column_and_nothing_else(template: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Custom(user=template)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            Custom(),
            {"questoin": "Q", "answer": "A"},
            "expected a column 'question', got questoin, answer. Did you mean 'questoin'?",
        ),
        (Custom(), {"question": None, "answer": "A"}, "expected 'question' to be text or a number, got null"),
        (Custom(), {"question": True, "answer": "A"}, "expected 'question' to be text or a number, got a boolean"),
        (Custom(), {"question": "Q", "answer": " "}, "expected 'answer' to give the assistant's turn some text, got none"),
        (Custom(references="all"), {"question": "Q", "answer": "A"}, "expected a column 'all', got question, answer"),
        (
            Custom(references="n"),
            {"question": "Q", "answer": "A", "n": 3},
            "expected 'n' to be a text or a list of texts, got a number",
        ),
    ],
)
def test_a_wrong_row_is_refused(task: Custom, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        task.format(row)
    assert str(caught.value) == message


def test_metrics_are_the_users() -> None:
    always = ("loss", "perplexity", "token_accuracy")
    assert names_for(Custom(), None) == (*always, "exact_match", "rougeL")
    assert names_for(Custom(metrics=["ROUGEL", "token_f1"]), None) == (*always, "rougeL", "token_f1")  # type: ignore[arg-type]  # as YAML has it
    assert Custom(metrics="token_f1, rouge1").metrics == ("token_f1", "rouge1")  # type: ignore[arg-type]  # as a flag has it
    assert names_for(Custom(metrics=("token_f1",)), ["rouge2"]) == (*always, "rouge2")
    assert hash(Custom(metrics=["token_f1"]))  # type: ignore[arg-type]  # as YAML has it
    with pytest.raises(UsageError, match="Did you mean 'token_f1'"):
        Custom(metrics=("token_f2",))
    with pytest.raises(UsageError, match=r"Expected --task\.metrics to be a list of names, got 3"):
        Custom(metrics=3)  # type: ignore[arg-type]  # what a wrong YAML file has
