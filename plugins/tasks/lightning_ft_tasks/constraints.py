"""Constraints that a row puts on its answer, in our own form and in IFEval's, and whether an answer meets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import did_you_mean, json_name
from lightning_ft_tasks import answer_checks as checks
from lightning_ft_tasks.languages import LANGUAGES, is_in_language

if TYPE_CHECKING:
    from collections.abc import Callable

OWN, IDS, ARGUMENTS = "constraints", "instruction_id_list", "kwargs"
"""Columns that state constraints: our own, and IFEval's two."""
BOUNDS = ("at_least", "at_most", "less_than", "exactly", "about")
"""Options of constraints that count; `about` allows 10 per cent more or less."""
ABOUT = 0.1


@dataclass(frozen=True)
class Kind:
    """A type of constraint."""

    check: Callable[..., Any]
    """From the answer and the options to truth, or to a number where it `counts`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What each option must be: `text`, `texts`, `letter`, `language` or `number`; `?` where it may be left out."""
    counts: bool = False
    """Whether bounds are stated for a number."""


KINDS: Mapping[str, Kind] = {
    "words": Kind(checks.count_words, counts=True),
    "sentences": Kind(checks.count_sentences, counts=True),
    "paragraphs": Kind(checks.count_paragraphs, {"divider": "text?"}, counts=True),
    "paragraph_starts_with": Kind(checks.paragraph_starts_with, {"paragraphs": "number", "number": "number", "word": "text"}),
    "bullets": Kind(checks.count_bullets, counts=True),
    "placeholders": Kind(checks.count_placeholders, counts=True),
    "highlights": Kind(checks.count_highlights, counts=True),
    "sections": Kind(checks.count_sections, {"splitter": "text"}, counts=True),
    "keyword": Kind(checks.count_keyword, {"keyword": "text"}, counts=True),
    "letter": Kind(checks.count_letter, {"letter": "letter"}, counts=True),
    "capital_words": Kind(checks.count_capital_words, counts=True),
    "keywords": Kind(checks.has_keywords, {"keywords": "texts"}),
    "forbidden_words": Kind(checks.lacks_words, {"words": "texts"}),
    "json": Kind(checks.is_json),
    "lower_case": Kind(checks.is_lower_case),
    "upper_case": Kind(checks.is_upper_case),
    "no_commas": Kind(checks.lacks_commas),
    "starts_with": Kind(checks.starts_with, {"phrase": "text"}),
    "ends_with": Kind(checks.ends_with, {"phrase": "text"}),
    "quotation": Kind(checks.is_quoted),
    "title": Kind(checks.has_title),
    "postscript": Kind(checks.has_postscript, {"marker": "text?"}),
    "two_responses": Kind(checks.are_two_responses),
    "repeat_prompt": Kind(checks.repeats_prompt, {"prompt": "text?"}),
    "one_of": Kind(checks.is_one_of, {"options": "texts"}),
    "language": Kind(is_in_language, {"language": "language"}),
}
"""All types by name."""


@dataclass(frozen=True)
class Constraint:
    """One constraint on an answer."""

    type: str
    options: Mapping[str, Any]

    def met(self, answer: str, prompt: str = "") -> bool:
        """Whether an answer meets it; an empty one meets none.

        Args:
            answer: What the model wrote.
            prompt: What it was asked, for `repeat_prompt` without a prompt of its own.
        """
        if not answer.strip():
            return False
        kind = KINDS[self.type]
        options = {name: value for name, value in self.options.items() if name not in BOUNDS}
        if self.type == "repeat_prompt":
            options.setdefault("prompt", prompt)
        found = kind.check(answer, **options)
        return self._within(found) if kind.counts else bool(found)

    def _within(self, count: int | None) -> bool:
        """Whether a number lies within all bounds."""
        return count is not None and all(
            _within(count, bound, limit) for bound, limit in self.options.items() if bound in BOUNDS
        )


def _within(count: int, bound: str, limit: int) -> bool:
    if bound == "about":
        return abs(count - limit) <= ABOUT * limit
    return {"at_least": count >= limit, "at_most": count <= limit, "less_than": count < limit, "exactly": count == limit}[bound]


@dataclass(frozen=True)
class Theirs:
    """An instruction of IFEval in our words."""

    type: str
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name for each of its arguments."""
    relation: tuple[str, str] | None = None
    """Its arguments for `at least` or `less than`, and for the number."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options that it leaves unsaid."""


IFEVAL: Mapping[str, Theirs] = {
    "keywords:existence": Theirs("keywords", {"keywords": "keywords"}),
    "keywords:frequency": Theirs("keyword", {"keyword": "keyword"}, ("relation", "frequency")),
    "keywords:forbidden_words": Theirs("forbidden_words", {"forbidden_words": "words"}),
    "keywords:letter_frequency": Theirs("letter", {"letter": "letter"}, ("let_relation", "let_frequency")),
    "language:response_language": Theirs("language", {"language": "language"}),
    "length_constraints:number_sentences": Theirs("sentences", relation=("relation", "num_sentences")),
    "length_constraints:number_paragraphs": Theirs("paragraphs", {"num_paragraphs": "exactly"}, fixed={"divider": "***"}),
    "length_constraints:number_words": Theirs("words", relation=("relation", "num_words")),
    "length_constraints:nth_paragraph_first_word": Theirs(
        "paragraph_starts_with", {"num_paragraphs": "paragraphs", "nth_paragraph": "number", "first_word": "word"}
    ),
    "detectable_content:number_placeholders": Theirs("placeholders", {"num_placeholders": "at_least"}),
    "detectable_content:postscript": Theirs("postscript", {"postscript_marker": "marker"}),
    "detectable_format:number_bullet_lists": Theirs("bullets", {"num_bullets": "exactly"}),
    "detectable_format:constrained_response": Theirs(
        "one_of", fixed={"options": ("My answer is yes.", "My answer is no.", "My answer is maybe.")}
    ),
    "detectable_format:number_highlighted_sections": Theirs("highlights", {"num_highlights": "at_least"}),
    "detectable_format:multiple_sections": Theirs("sections", {"section_spliter": "splitter", "num_sections": "at_least"}),
    "detectable_format:json_format": Theirs("json"),
    "detectable_format:title": Theirs("title"),
    "combination:two_responses": Theirs("two_responses"),
    "combination:repeat_prompt": Theirs("repeat_prompt", {"prompt_to_repeat": "prompt"}),
    "startend:end_checker": Theirs("ends_with", {"end_phrase": "phrase"}),
    "startend:quotation": Theirs("quotation"),
    "change_case:capital_word_frequency": Theirs("capital_words", relation=("capital_relation", "capital_frequency")),
    "change_case:english_capital": Theirs("upper_case"),
    "change_case:english_lowercase": Theirs("lower_case"),
    "punctuation:no_comma": Theirs("no_commas"),
}
"""The 25 instructions of IFEval's file. Of the two about case the letters are checked, not that they are English."""
RELATIONS = {"at least": "at_least", "less than": "less_than"}


def constraints_of(meta: Mapping[str, Any]) -> tuple[Constraint, ...]:
    """The constraints that a row states in its columns; none where it has neither column.

    Raises:
        ValueError: an unknown type or a wrong option; says which.
    """
    own, ids = meta.get(OWN), meta.get(IDS)
    found = []
    for number, stated in enumerate(_list(own, OWN), 1):
        if not isinstance(stated, Mapping) or not isinstance(stated.get("type"), str):
            got = "one without" if isinstance(stated, Mapping) else json_name(stated)
            raise ValueError(f"expected constraint {number} of '{OWN}' to be an object with a type, got {got}")
        options = {name: value for name, value in stated.items() if name != "type" and value is not None}
        found.append(checked(stated["type"], options))
    arguments = _list(meta.get(ARGUMENTS), ARGUMENTS) if ids is not None else []
    if ids is not None and len(_list(ids, IDS)) != len(arguments):
        raise ValueError(f"expected '{ARGUMENTS}' to have an object for each of '{IDS}', got {len(arguments)} for {len(ids)}")
    found += [_ours(name, values) for name, values in zip(ids or (), arguments, strict=True)]
    return tuple(found)


def checked(name: str, options: Mapping[str, Any]) -> Constraint:
    """A constraint whose type and options are right.

    Raises:
        ValueError: they are not; says what was expected.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"expected a type of constraint ({', '.join(KINDS)}), got '{name}'.{did_you_mean(name, KINDS)}")
    known = [*kind.options, *(BOUNDS if kind.counts else ())]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"expected an option of constraint {name} ({', '.join(known) or 'it has none'}), got '{option}'")
        _check(name, option, value, kind.options.get(option, "number").rstrip("?"))
    for option, wanted in kind.options.items():
        if option not in options and not wanted.endswith("?"):
            raise ValueError(f"expected constraint {name} to have '{option}', got {', '.join(options) or 'no option'}")
    if kind.counts and not any(bound in options for bound in BOUNDS):
        raise ValueError(f"expected constraint {name} to have one of {', '.join(BOUNDS)}, got none")
    return Constraint(name, dict(options))


def _check(name: str, option: str, value: Any, wanted: str) -> None:
    """Refuse an option of a wrong type."""
    right = {
        "number": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "text": isinstance(value, str) and value.strip() != "",
        "texts": isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, str) and v.strip() for v in value),
        "letter": isinstance(value, str) and len(value) == 1,
        "language": isinstance(value, str) and value in LANGUAGES,
    }[wanted]
    if not right:
        said = {"number": "a whole number of at least 0", "texts": "a list of texts", "letter": "one character", "text": "text",
                "language": f"one of {', '.join(LANGUAGES)}"}[wanted]  # fmt: skip
        raise ValueError(f"expected '{option}' of constraint {name} to be {said}, got {value!r:.80}")


def _ours(name: Any, values: Any) -> Constraint:
    """An instruction of IFEval as a constraint; arguments that are null are left out, as Hugging Face's copy has them."""
    theirs = IFEVAL.get(name) if isinstance(name, str) else None
    if theirs is None:
        hint = did_you_mean(name, IFEVAL) if isinstance(name, str) else ""
        raise ValueError(f"expected an instruction of IFEval such as {next(iter(IFEVAL))} in '{IDS}', got {name!r:.80}.{hint}")
    if not isinstance(values, Mapping):
        raise ValueError(f"expected the arguments of {name} in '{ARGUMENTS}' to be an object, got {json_name(values)}")
    given = {key: value for key, value in values.items() if value is not None}
    options = dict(theirs.fixed)
    if theirs.relation is not None:
        relation, number = theirs.relation
        if given.get(relation) not in RELATIONS or number not in given:
            raise ValueError(f"expected {name} to have {number} and a {relation} of {' or '.join(RELATIONS)}, got {given}")
        options[RELATIONS[given.pop(relation)]] = given.pop(number)
    for key, value in given.items():
        if key not in theirs.names:
            known = ", ".join([*theirs.names, *(theirs.relation or ())]) or "it has none"
            raise ValueError(f"expected an argument of {name} ({known}), got '{key}'")
        options[theirs.names[key]] = value
    try:
        return checked(theirs.type, options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _list(value: Any, column: str) -> list[Any]:
    """A column that holds a list; none is an empty one."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected '{column}' to be a list, got {json_name(value)}")
    return list(value)
