"""Every type of constraint on answers that meet it and answers that just do not, and both forms in which rows state them."""

from __future__ import annotations

from typing import Any

import pytest
from lightning_ft_tasks.adherence import Adherence, Completion
from lightning_ft_tasks.answer_checks import sentences_of
from lightning_ft_tasks.constrained import Constrained
from lightning_ft_tasks.constraints import IFEVAL, KINDS, checked, constraints_of

from lightning_ft.testing import check_metric, check_task
from lightning_ft.types import Conversation, Message, ScoredRow

ASKED = "Name a colour."
CASES: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "words": [
        ({"at_least": 3}, "one two three", "one two"),
        ({"at_most": 3}, "one two three", "one two three four"),
        ({"less_than": 3}, "one two", "one two three"),
        ({"exactly": 4}, "don't do that", "do that"),  # "don't" is two words
        ({"about": 20}, "word " * 22, "word " * 23),
        ({"at_least": 2, "at_most": 3}, "one two", "one"),
    ],
    "sentences": [({"exactly": 2}, "Dr. Smith paid 3.5 dollars. He left!", "He paid. He left. He came back.")],
    "paragraphs": [
        ({"exactly": 2}, "One.\n\n\nTwo.\nStill two.", "One.\nStill one."),
        ({"exactly": 2, "divider": "***"}, "One.\n***\nTwo.\n***", "One.\n***\n***\nTwo."),
    ],
    "paragraph_starts_with": [
        ({"paragraphs": 2, "number": 2, "word": "Then"}, 'First.\n\n"then, we', "First.\n\nAnd then"),
        ({"paragraphs": 2, "number": 1, "word": "first"}, "First.\n\nThen", "First.\n\nThen\n\nlast"),
    ],
    "bullets": [({"exactly": 2}, "* one\n- two", "* one\n** bold **")],
    "placeholders": [({"at_least": 2}, "Dear [name], at [place]", "Dear [name")],
    "highlights": [({"at_least": 2}, "*one* and **two**", "*one* and ** **")],
    "sections": [({"at_least": 2, "splitter": "SECTION"}, "SECTION 1\na\nSECTION 2\nb", "SECTION 1\na\nSECTION two")],
    "keyword": [({"exactly": 2, "keyword": "C++"}, "c++ and C++", "C and C++")],
    "letter": [({"less_than": 3, "letter": "E"}, "here", "where we were")],
    "capital_words": [({"exactly": 2}, "I said NO", "I said No")],
    "keywords": [({"keywords": ["river", "land"]}, "Landing by the RIVER", "By the river")],
    "forbidden_words": [({"words": ["can"]}, "A canal", "We Can.")],
    "json": [({}, '```json\n{"a": [1]}\n```', "{a: 1}")],
    "lower_case": [({}, "all small, 3", "All small"), ({}, "a", "3")],
    "upper_case": [({}, "ALL BIG, 3", "ALL BIg")],
    "no_commas": [({}, "one; two", "one, two")],
    "starts_with": [({"phrase": "Well then"}, ' "well then, yes', "Oh well then")],
    "ends_with": [({"phrase": "The end."}, 'So. the END." ', "The end. So")],
    "quotation": [({}, ' "yes" ', '"'), ({}, '"yes"', '"yes" he said')],
    "title": [({}, "<<A day>>\nText", "<< >>")],
    "postscript": [
        ({}, "Bye\np. s. More", "Bye PS"),
        ({"marker": "P.P.S"}, "Bye\nP.P.S more", "Bye\nP.S. more"),
        ({"marker": "Note:"}, "note: this", "note this"),
    ],
    "two_responses": [({}, "One\n******\nTwo", "One\n******\nOne"), ({}, "1******2******", "1******2******3")],
    "repeat_prompt": [
        ({"prompt": "Say it."}, " say it. Yes", "Yes. Say it."),
        ({}, f"{ASKED.upper()} Blue.", "Blue."),
    ],
    "one_of": [({"options": ["My answer is yes.", "My answer is no."]}, "Well. My answer is no.", "my answer is no.")],
    "language": [
        ({"language": "de"}, "Das ist nicht das Haus von der Frau.", "This is not the house of the woman."),
        ({"language": "ru"}, "\u042d\u0442\u043e \u043d\u0435 \u0434\u043e\u043c", "\u043d\u0435 \u0434\u0456\u043c"),
        ({"language": "ja"}, "\u3053\u308c\u306f\u672c\u3067\u3059", "\u8fd9\u662f\u4e66"),
        ({"language": "ko"}, "\ucc45\uc785\ub2c8\ub2e4", "42"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "right", "wrong"), [(name, *case) for name in CASES for case in CASES[name]])
def test_a_constraint_is_met_or_not(name: str, options: dict[str, Any], right: str, wrong: str) -> None:
    constraint = checked(name, options)
    assert constraint.met(right, ASKED)
    assert not constraint.met(wrong, ASKED)
    assert not constraint.met(" \n", ASKED), "an empty answer meets none"


def test_every_type_has_its_cases() -> None:
    assert set(CASES) == set(KINDS)
    assert {theirs.type for theirs in IFEVAL.values()} <= set(KINDS)
    assert len(IFEVAL) == 25


def test_sentences() -> None:
    text = 'Mr. A. Smith, e.g. here, paid 1.5. "Yes!" he said... then left. Why?\nNo'
    assert sentences_of(text) == ["Mr. A. Smith, e.g. here, paid 1.5.", '"Yes!"', "he said... then left.", "Why?", "No"]
    assert len(sentences_of("\u4eca\u65e5\u306f\u3002\u5143\u6c17\uff1f")) == 2
    assert sentences_of(" ... ! ") == []


IFEVAL_ROW: dict[str, Any] = {
    "key": 1,
    "prompt": ASKED,
    "instruction_id_list": [
        "punctuation:no_comma", "length_constraints:number_words", "keywords:letter_frequency", "combination:repeat_prompt",
        "length_constraints:number_paragraphs", "detectable_format:constrained_response",
    ],
    "kwargs": [
        {}, {"relation": "at least", "num_words": 3}, {"let_relation": "less than", "letter": "z", "let_frequency": 1},
        {"prompt_to_repeat": ASKED}, {"num_paragraphs": 2}, {},
    ],
}  # fmt: skip


def test_ifevals_form_is_read() -> None:
    found = constraints_of(IFEVAL_ROW)
    assert [(c.type, dict(c.options)) for c in found] == [
        ("no_commas", {}),
        ("words", {"at_least": 3}),
        ("letter", {"letter": "z", "less_than": 1}),
        ("repeat_prompt", {"prompt": ASKED}),
        ("paragraphs", {"divider": "***", "exactly": 2}),
        ("one_of", {"options": ("My answer is yes.", "My answer is no.", "My answer is maybe.")}),
    ]
    padded = [dict.fromkeys(["relation", "num_words", "letter", "num_paragraphs"]) | values for values in IFEVAL_ROW["kwargs"]]
    assert constraints_of(IFEVAL_ROW | {"kwargs": padded}) == found, "nulls are left out, as in the copy of the hub"
    assert constraints_of({"constraints": [{"type": "title"}], **IFEVAL_ROW})[0].type == "title"
    assert constraints_of({}) == ()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"constraints": "x"}, "expected 'constraints' to be a list, got a string"),
        ({"constraints": [{}]}, "expected constraint 1 of 'constraints' to be an object with a type, got one without"),
        ({"constraints": [{"type": "wrds"}]}, r"expected a type of constraint \(words, .*, got 'wrds'. Did you mean 'words'\?"),
        ({"constraints": [{"type": "words"}]}, "expected constraint words to have one of at_least, .* got none"),
        (
            {"constraints": [{"type": "words", "at_least": "3"}]},
            "'at_least' of constraint words to be a whole number .* got '3'",
        ),
        ({"constraints": [{"type": "words", "at_least": True}]}, "to be a whole number of at least 0, got True"),
        ({"constraints": [{"type": "title", "at_least": 3}]}, r"an option of constraint title \(it has none\), got 'at_least'"),
        ({"constraints": [{"type": "keywords"}]}, "expected constraint keywords to have 'keywords', got no option"),
        ({"constraints": [{"type": "keywords", "keywords": []}]}, r"to be a list of texts, got \[\]"),
        ({"constraints": [{"type": "letter", "letter": "ab", "exactly": 1}]}, "to be one character, got 'ab'"),
        ({"constraints": [{"type": "language", "language": "xx"}]}, "to be one of ar, bg, .* got 'xx'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "got 0 for 1"),
        ({"instruction_id_list": ["no_comma"], "kwargs": [{}]}, "expected an instruction of IFEval such as .* got 'no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"x": 1}]}, r"\(it has none\), got 'x'"),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "at most", "num_words": 3}]},
            "expected length_constraints:number_words to have num_words and a relation of at least or less than",
        ),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "keywords:existence: expected constraint keywords"),
    ],
)
def test_a_wrong_constraint_is_refused_with_its_row(meta: dict[str, Any], message: str) -> None:
    row = ScoredRow("rows.jsonl:7", Conversation((Message("user", "q"),), meta=meta), prediction="x")
    with pytest.raises(ValueError, match=f"^rows.jsonl:7: .*{message}"):
        Adherence().check(row)
    with pytest.raises(ValueError, match=r"rows\.jsonl:7: "):
        Completion().statistics(row)


def row(prediction: str | None, *constraints: dict[str, Any], number: int = 1) -> ScoredRow:
    example = Conversation((Message("user", ASKED), Message("assistant", "")), meta={"constraints": list(constraints)})
    return ScoredRow(f"f:{number}", example, prediction=prediction)


THREE = ({"type": "no_commas"}, {"type": "lower_case"}, {"type": "words", "at_most": 2})


def test_shares_by_hand() -> None:
    """`one two three` meets 2 of 3, `HI` its 1 of 1; a row without any counts for nothing: 3 / 4 and 1 / 2."""
    rows = [row("one two three", *THREE), row("HI", {"type": "upper_case"}), row("anything")]
    for metric, value in ((Adherence(), 3 / 4), (Completion(), 1 / 2)):
        metric.update(rows)
        assert float(metric.compute()) == pytest.approx(value)
    assert Adherence().statistics(row("", *THREE)) == (0.0, 3.0)
    assert Completion().statistics(rows[2]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="f:1: expected a generated answer"):
        Adherence().statistics(row(None, *THREE))


@pytest.mark.parametrize("metric", [Adherence, Completion])
def test_keeps_the_contract(metric: type[Adherence]) -> None:
    check_metric(
        metric, [row("one two", *THREE, number=i) for i in range(6)], [row("A, B C", *THREE, number=i) for i in range(6)]
    )
    assert metric().signature


def test_the_task_reads_rows_with_and_without_an_answer() -> None:
    check_task(Constrained)
    example = Constrained(system="Be brief.").format(IFEVAL_ROW)
    assert [(m.role, m.content, m.loss_weight) for m in example.messages] == [
        ("system", "Be brief.", 0.0), ("user", ASKED, 0.0), ("assistant", "", 0.0),
    ]  # fmt: skip
    assert constraints_of(example.meta) == constraints_of(IFEVAL_ROW)
    assert example.meta["key"] == 1
    assert "response" not in example.meta
    assert Constrained().format(IFEVAL_ROW | {"output": None}).messages == Constrained().format(IFEVAL_ROW).messages
    with pytest.raises(ValueError, match="expected 'output' to hold text"):
        Constrained().format(IFEVAL_ROW | {"output": ""})
    assert not Constrained.matches(frozenset({"prompt", "response"}))
    assert not Constrained.matches(frozenset({"prompt", "instruction_id_list"}))
