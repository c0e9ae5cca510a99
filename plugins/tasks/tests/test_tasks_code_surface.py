"""Code by its text: the fence around it, whether it parses, whether and how nearly it is the expected text."""

from __future__ import annotations

import importlib.util
import random
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_tasks.code_metrics import grammar
from lightning_ft_tasks.code_metrics.programs import code_of, program_of, python_tree
from lightning_ft_tasks.code_metrics.surface import CodeExactMatch, EditSimilarity, SyntaxValid, levenshtein

from lightning_ft.testing import check_metric
from lightning_ft.types import Conversation, Message, ScoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.metric import Metric


def row(prediction: str | None, *references: str, prompt: str = "Write it.", **meta: Any) -> ScoredRow:
    example = Conversation((Message("user", prompt), Message("assistant", references[0] if references else "")), meta=meta)
    return ScoredRow("f:1", example, prompt=prompt, prediction=prediction, references=references)


def value(metric: type[Metric], *rows: ScoredRow) -> float:
    made = metric()
    made.update(rows)
    return float(made.compute())


def programs(texts: Sequence[str]) -> list[ScoredRow]:
    rows = [row(text, "x = 1", prompt=f"{i}") for i, text in enumerate(texts)]
    for i, one in enumerate(rows):
        one.row = f"f:{i + 1}"
    return rows


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1\n", "x = 1\n"),
        ("Here:\n\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1\n"),
        ("~~~\nx = '```'\n~~~", "x = '```'\n"),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
        ("```\nx = 1", "x = 1"),
        ("``` one `` two\nx = 1", "``` one `` two\nx = 1"),
        ('def f():\n    """\n    ```\n    f()\n    ```\n    """', 'def f():\n    """\n    ```\n    f()\n    ```\n    """'),
        ("   ```\n    return 1\n   ```  \n", "    return 1\n"),
        ("```go\r\nx\r\n```\r\n", "x\r\n"),
        ("", ""),
    ],
)
def test_the_first_fenced_block_is_the_code(answer: str, code: str) -> None:
    assert code_of(answer) == code


def test_code_metrics_keep_the_contract() -> None:
    check_metric(CodeExactMatch)
    check_metric(EditSimilarity)
    wrong = ["x = (", "", "return return", "# nothing", "```\nx =\n```", "def f(:\n    pass"]
    check_metric(SyntaxValid, programs(["x = 1", "pass", "```py\ny\n```", "def f(): ...", "import os", "f()"]), programs(wrong))


def test_answers_that_parse_are_valid_and_nothing_is_run() -> None:
    """Of raise, "", a comment, an open bracket, a fence in prose and prose: raise and the fence parse, 2 of 6."""
    answers = ["raise SystemExit", "", "# todo", "f(", "Sure:\n```python\nx = 1\n```", "I cannot do that."]
    assert value(SyntaxValid, *(row(answer) for answer in answers)) == pytest.approx(2 / 6)
    assert value(SyntaxValid, row("x = '\\d'")) == 1, "an unknown escape is only warned about"
    assert value(SyntaxValid, row("x = '\0'")) == 0


@pytest.mark.parametrize("answer", ["(" * 5000, "-" * 200_000 + "1", "[" * 300 + "]" * 300, "f" + "()" * 50_000])
def test_code_too_deep_for_the_parser_is_not_valid(answer: str) -> None:
    assert python_tree(answer) is None


def test_an_answer_that_goes_on_where_the_prompt_stops_is_parsed_with_it() -> None:
    prompt = 'import math\n\ndef area(r):\n    """Of a circle."""\n'
    body = row("    return math.pi * r * r\n", prompt=prompt, entry_point="area")
    assert value(SyntaxValid, body) == 1
    assert value(SyntaxValid, row("    return math.pi *", prompt=prompt)) == 0
    assert program_of(body, body.prediction or "") == prompt + "    return math.pi * r * r\n"
    assert program_of(body, "return 1\n") == prompt + "    return 1\n", "templates strip the first indentation"
    whole = "```python\ndef area(r):\n    return 3 * r * r\n```"
    assert program_of(body, whole) == f"{prompt}\n\ndef area(r):\n    return 3 * r * r\n", "imports of the prompt stay"
    helper = "def other():\n    return 1\n"
    assert program_of(body, helper) == prompt + helper, "what does not define the entry point goes on"
    assert program_of(row("", prompt="Hello"), "x = 1") == "x = 1", "a prompt in words is no code, though it parses"


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        ("javascript", "const f = (a) => a ?? 1;", "const f = (a => ;"),
        ("js", "```js\nlet x = 1\n```", "let x = "),
        ("java", "class A { int f() { return 1; } }", "class A { int f() { return 1 } }"),
        ("go", "package p\n\nfunc f() int { return 1 }", "func f( { }"),
        ("c", "int main(void) { return 0; }", "int main(void) { return 0;"),
        ("Rust", "fn main() { let x = 1; }", "fn main() { let = 1; }"),
    ],
)
def test_other_languages_are_parsed_by_tree_sitter(language: str, right: str, wrong: str) -> None:
    pytest.importorskip("tree_sitter", reason="the extra lightning-ft-tasks[code] is not installed")
    assert value(SyntaxValid, row(right, language=language)) == 1
    assert value(SyntaxValid, row(wrong, language=language)) == 0
    assert value(SyntaxValid, row("", language=language), row("// nothing", language=language)) == 0


def test_rows_in_a_language_without_a_parser_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that nobody has a grammar of, nor one whose package is missing."""
    metric = SyntaxValid()
    assert metric.statistics(row("MOVE A TO B.", language="cobol")) == (0, 0)
    assert value(SyntaxValid, row("x = 1"), row("x =", language=None), row("?", language="cobol")) == 1 / 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tree_sitter_go" else object())
    assert metric.statistics(row("package main", language="go")) == (0, 0)
    assert metric.statistics(row("fn main() {}", language="rust")) == (1, 1)
    assert set(grammar.LANGUAGES) >= {"go", "rust"}


def test_exact_match_leaves_out_line_ends_and_fences_only() -> None:
    assert value(CodeExactMatch, row("```python\nx = 1  \ny = 2\n\n\n```", "x = 1\ny = 2")) == 1
    assert value(CodeExactMatch, row("x = 1\r\ny = 2", "x = 1\ny = 2\n")) == 1
    assert value(CodeExactMatch, row("  x = 1", "x = 1"), row("x = 1\n\ny", "x = 1\ny"), row("", "x")) == 0


def test_edit_similarity_by_hand() -> None:
    """kitten to sitting: k to s, e to i, and g at the end are 3 of 7 characters, so 4 / 7."""
    assert value(EditSimilarity, row("kitten", "sitting")) == pytest.approx(4 / 7)
    assert value(EditSimilarity, row("", "abc")) == 0
    assert value(EditSimilarity, row("\n", "  \n")) == 1
    assert value(EditSimilarity, row("abd", "abc", "xyz")) == pytest.approx(2 / 3), "the best reference counts"


def table(one: str, other: str) -> int:
    """The distance by the whole table (Wagner and Fischer 1974)."""
    above = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
        above = row
    return above[-1]


def test_the_distance_is_that_of_the_whole_table() -> None:
    draw = random.Random(1)
    for _ in range(400):
        one, other = ("".join(draw.choices("ab\u00e9 ", k=draw.randrange(90))) for _ in range(2))
        assert levenshtein(one, other) == table(one, other), (one, other)
    long = "".join(draw.choices("abcdefgh", k=2000))
    assert levenshtein(long, long[100:] + "x" * 100) <= 200
