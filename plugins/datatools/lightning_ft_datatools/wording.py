"""Rephrasings of English instructions by templates, which keep every content word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.cli.values import read_yaml_text
from lightning_ft_datatools.records import folded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_ft_datatools.ways import Job

_WORD = re.compile(r"[A-Za-z][A-Za-z-]*(?:'[a-z]+)?(?![\w:])")
_HEAD = re.compile(
    r"([^.?!:;\n\"`(){}\[\]<>]*[^.?!:;\n\"`(){}\[\]<>\s])"
    r"(?:([.?])(?=\s+[A-Z]|\s*\n|\s*\Z)|()(?=\s*\n|\s*\Z))"
)
"""A first sentence without anything that a question mark behind it could do harm to, and its end."""
_POLITE = re.compile(r"(?:please|kindly),? +(?=\w)", re.IGNORECASE)
_ASKED = re.compile(r"(?:can|could|would) you (?:please |kindly )?(.+)", re.IGNORECASE)
_HOW = re.compile(r"how (?:to|(?:can|could|do|should|would) (?:i|we|one)) (.+)", re.IGNORECASE)
_WHAT = re.compile(r"(what|who) (is|are|was|were) (the (?:[\w'-]+ ){1,4}of (?:[\w'-]+ ){0,4}[\w'-]+)", re.IGNORECASE)
_OPENING = re.compile(r"[\d\"'`<{\[(\u201c]")
_MATTER = re.compile(r"[\n:\"`{\[<\u201c]")
"""Signs that a text may end in what it is about, where words of thanks would be taken for a part of it."""
_SLOT = re.compile(r"\{(\w+)\}")
_SHORT = 300
"""Characters of a text up to which words may follow it."""


@dataclass(frozen=True)
class Templates:
    """Rows with other wordings of the same, of each row as many different ones as fit."""

    name: ClassVar[str] = "templates"
    rephrases: ClassVar[bool] = True
    unchanged: ClassVar[str] = "no further template fits"

    @property
    def details(self) -> Mapping[str, Any]:
        """Nothing: there are no options."""
        return {}

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
        """Another wording of each text of each job, where there is one left."""
        for job in jobs:
            yield tuple(_nth(text, f"{job.seed}/{number}", job.copy) for number, text in enumerate(job.texts))


def _nth(text: str, seed: str, number: int) -> str:
    """One of the wordings in an order that the seed decides, or the text."""
    found = wordings(text)
    return Random(seed).sample(found, len(found))[number] if number < len(found) else text


def wordings(text: str) -> list[str]:
    """Every way in which the templates say a text: none for one that is not English or does not begin with a word."""
    body = text.strip()
    if not _WORD.match(body) or body.isupper():
        return []
    made = dict.fromkeys(wording for section, slots in _forms(body) for wording in _filled(section, slots))
    return [wording for wording in made if folded(wording) != folded(text)]


def _forms(body: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The sections of the templates that fit a text, with what goes into their slots."""
    plain = _POLITE.sub("", body, count=1) if _POLITE.match(body) else body
    sentence = _sentence(plain)
    if _is_request(plain):
        if sentence:
            yield "request_as_question", {"clause": _small(sentence[0]), "tail": sentence[2]}
        if not _asks(plain):
            yield "plain_request", {"text": _capital(plain)}
            yield "request", {"rest": _small(plain)}
    elif sentence and sentence[1] == "?" and (asked := _ASKED.fullmatch(sentence[0])) and _is_request(asked[1]):
        yield "question_as_request", {"clause": asked[1], "Clause": _capital(asked[1]), "tail": sentence[2]}
    elif _is_question(body):
        yield "question", {"text": body, "rest": _small(body)}
        if sentence and sentence[1] == "?":
            yield from _turned(sentence[0], sentence[2])
    elif _is_english(body):
        yield "statement", {"text": body}
    else:
        return
    if len(body) <= _SHORT and body[-1] in ".?!" and not _MATTER.search(body):
        yield "ending", {"text": body}


def _turned(question: str, tail: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A question as a request, where its words allow it."""
    if how := _HOW.fullmatch(question):
        yield "how_question", {"clause": how[1], "tail": tail}
    if what := _WHAT.fullmatch(question):
        words = what[3].lower().split()
        if words[-1] not in _words("dangling") and not words[-1].endswith("ed") and _words("subordinating").isdisjoint(words):
            yield "what_question", {"word": what[1].lower(), "noun": what[3], "verb": what[2].lower(), "tail": tail}


def _filled(section: str, slots: Mapping[str, str]) -> Iterator[str]:
    polite = any("please" in value.lower() for value in slots.values())
    for template in _data()[section]:
        if not (polite and "please" in template.lower()):  # once is enough
            yield _SLOT.sub(lambda found: slots[found[1]], template) + slots.get("tail", "")


def _sentence(text: str) -> tuple[str, str, str] | None:
    """The first sentence, its end and what follows, if it is one of words and commas."""
    found = _HEAD.match(text)
    if found is None or (found[2] == "." and found[1].split()[-1].lower() in _words("abbreviations")):
        return None
    return found[1], found[2] or "", text[found.end() :]


def _is_request(text: str) -> bool:
    """Whether an English text begins with a verb that asks for something."""
    first = _WORD.match(text)
    following = text[first.end() :].split(None, 1)[:1] if first and text[first.end() : first.end() + 1] == " " else []
    if first is None or not following:
        return False
    if first[0].lower() in _words("nouns"):
        asks = following[0].strip(",.").lower() in _words("objects") or bool(_OPENING.match(following[0]))
    else:
        asks = first[0].lower() in _words("verbs")
    return asks and (_is_english(text) or not _is_foreign(text))


def _is_question(text: str) -> bool:
    """Whether the first sentence is an English question; without a question mark only a short one."""
    first, *rest = text.lower().split()
    word, _, ending = first.partition("'")
    helped = ending in ("s", "re", "d", "ve", "ll") or (bool(rest) and _is_auxiliary(rest[0]))
    if not _asks(text):
        return word in _words("question_words") and helped and len(rest) < 20 and not re.search(r"[.!:\n]", text)
    if _is_auxiliary(first):
        return _is_english(text) or (first not in _words("homographs") and not _is_foreign(text))
    return word in _words("question_words") and (helped or word not in _words("conjunctions"))


def _is_auxiliary(word: str) -> bool:
    return word in _words("auxiliaries") or word.endswith("n't")


def _asks(text: str) -> bool:
    """Whether the first sentence ends in a question mark."""
    end = re.search(r"[.!?](?=\s|\Z)", text)
    return end is not None and end[0] == "?"


def _is_english(text: str) -> bool:
    """Whether one of ten of the first words hardly stands in another language, or somebody says "I" in plain letters."""
    words = _letters(text)[:40]
    sure = 10 * sum(word in _words("english") for word in words) >= max(1, len(words))
    return sure or ("i" in words and text.isascii() and not _is_foreign(text))


def _is_foreign(text: str) -> bool:
    """Whether a word hardly stands in an English text."""
    return not _words("foreign").isdisjoint(_letters(text))


def _letters(text: str) -> list[str]:
    """The words, in small letters."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _small(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@cache
def _data() -> Mapping[str, Any]:
    """The data file of the package."""
    text = resources.files("lightning_ft_datatools").joinpath("templates.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = read_yaml_text(text)
    return loaded


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(_data()[name].split())
