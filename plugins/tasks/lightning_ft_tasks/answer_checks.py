"""What can be counted or found in an answer without a model: the checks behind constraints.

They follow the reference implementation of IFEval (Zhou et al. 2023, arXiv:2311.07911, table 1) down to its corners, so that
shares can be compared with published ones; where one differs, its docstring says how and why. Words of a constraint are
looked for as they are written; the reference reads some of them as regular expressions, which "C++" is not.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SENTENCE_END = re.compile("[.!?]+[\"')\\]*_\u201d\u2019]*(?=\\s|$)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*")
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "gen", "col", "lt", "capt", "sgt", "rev", "hon", "vs", "etc", "e.g",
    "i.e", "cf", "al", "inc", "ltd", "co", "corp", "vol", "fig", "dept", "est", "approx", "jan", "feb", "mar", "apr", "jun",
    "jul", "aug", "sep", "sept", "oct", "nov", "dec", "a.m", "p.m", "u.s", "u.k", "ph.d",
})  # fmt: skip
"""Words after which a full stop ends no sentence."""


def count_words(answer: str) -> int:
    """Runs of letters, digits and underscores: "don't" is two, as in the reference."""
    return len(re.findall(r"\w+", answer))


def count_sentences(answer: str) -> int:
    """Sentences of an answer."""
    return len(sentences_of(answer))


def sentences_of(text: str) -> list[str]:
    """Pieces of a text that end in `.`, `!` or `?` before white space, or in their full-width forms.

    Line breaks end none. A full stop ends none after an initial or an abbreviation, several none before a small letter. The
    reference asks NLTK's trained Punkt model, which needs a download and differs at rarer abbreviations and numbered lists.
    """
    pieces, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        piece = text[start : end.end()]
        if re.search(r"\w", piece) and not _goes_on(text, start, end):
            pieces.append(piece.strip())
            start = end.end()
    rest = text[start:].strip()
    return [*pieces, rest] if re.search(r"\w", rest) else pieces


def _goes_on(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether a sentence goes on after what looks like its end."""
    if not end[0].startswith("."):
        return False
    word = text[start : end.start()].split()[-1:] or [""]
    bare = word[0].lstrip("\"'([*_").lower()
    if end[0].startswith(".."):
        return text[end.end() :].lstrip()[:1].islower()
    initial = len(bare) == 1 and bare.isalpha() and bare != "i"
    return bare in ABBREVIATIONS or initial


def count_paragraphs(answer: str, divider: str | None = None) -> int | None:
    """Paragraphs between blank lines, or between a divider; None (never right) where two dividers have nothing between them."""
    if divider is None:
        return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", answer))
    parts = [part.strip() for part in answer.split(divider)]
    return sum(map(bool, parts)) if all(parts[1:-1]) else None


def paragraph_starts_with(answer: str, paragraphs: int, number: int, word: str) -> bool:
    """Whether there are so many paragraphs (between two line breaks) and the one of that number begins with a word."""
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != paragraphs or number > count or not (part := parts[number - 1].strip()):
        return False
    first = re.split(r"[.,?!'\"]", part.split()[0].lstrip("'").lstrip('"'))[0]
    return first.lower() == word.lower()


def count_bullets(answer: str) -> int:
    """Lines that begin with `* ` or `-`; `**bold**` is none, a line of dashes is one, as in the reference."""
    return len(re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE))


def count_placeholders(answer: str) -> int:
    """Texts in square brackets within a line, such as [address]."""
    return len(re.findall(r"\[.*?\]", answer))


def count_highlights(answer: str) -> int:
    """Texts in one or two asterisks within a line, with something between them."""
    single = (found.strip("*") for found in re.findall(r"\*[^\n*]*\*", answer))
    double = (found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", answer))
    return sum(bool(inner.strip()) for found in (single, double) for inner in found)


def count_sections(answer: str, splitter: str) -> int:
    """Places where the splitter stands before a number: Section 1, SECTION 2."""
    return len(re.findall(rf"{re.escape(splitter.strip())}\s?\d+", answer))


def count_keyword(answer: str, keyword: str) -> int:
    """Places where a keyword stands, within words too, in any case."""
    return len(re.findall(re.escape(keyword.strip()), answer, re.IGNORECASE))


def count_letter(answer: str, letter: str) -> int:
    """How often a character stands, in any case. The reference draws another one by chance where it is no Latin letter."""
    return answer.lower().count(letter.lower())


def count_capital_words(answer: str) -> int:
    """Words in capital letters, one-letter ones among them, after the Penn Treebank's rules, as in the reference."""
    tokenize = treebank().tokenize
    return sum(word.isupper() for sentence in sentences_of(answer) for word in tokenize(sentence))


@functools.cache
def treebank() -> Any:
    """NLTK's tokenizer of the Penn Treebank, which needs no data; it comes with rouge-score."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def is_json(answer: str) -> bool:
    """Whether the whole answer is JSON, in a Markdown fence or not."""
    bare = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Whether all keywords stand in the answer, within words too, in any case."""
    return all(re.search(re.escape(keyword), answer, re.IGNORECASE) for keyword in keywords)


def lacks_words(answer: str, words: Sequence[str]) -> bool:
    """Whether none of the words stands in the answer as a whole word, in any case."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


def is_lower_case(answer: str) -> bool:
    """Whether there are letters, and all of them small."""
    return answer.islower()


def is_upper_case(answer: str) -> bool:
    """Whether there are letters, and all of them capital."""
    return answer.isupper()


def lacks_commas(answer: str) -> bool:
    """Whether no comma stands in the answer."""
    return "," not in answer


def starts_with(answer: str, phrase: str) -> bool:
    """Whether the answer begins with a phrase, in any case, after white space and quotation marks."""
    return answer.strip().lstrip('"').lower().startswith(phrase.strip().lower())


def ends_with(answer: str, phrase: str) -> bool:
    """Whether the answer ends with a phrase, in any case, before white space and quotation marks."""
    return answer.strip().strip('"').lower().endswith(phrase.strip().lower())


def is_quoted(answer: str) -> bool:
    """Whether the whole answer stands in double quotation marks."""
    bare = answer.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def has_title(answer: str) -> bool:
    """Whether there is a title in double angular brackets: <<Title>>."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", answer))


def has_postscript(answer: str, marker: str = "P.S.") -> bool:
    """Whether a marker such as P.S. or P.P.S stands anywhere, in any case, with white space after its full stops or not."""
    parts = [re.escape(part) for part in re.split(r"(?<=\.)(?=\w)", marker.strip().lower())]
    return re.search(r"\s?".join(parts), answer.lower()) is not None


def are_two_responses(answer: str) -> bool:
    """Whether six asterisks stand between two different texts."""
    parts = [part.strip() for part in answer.split("******")]
    told = [part for part in parts if part]
    return all(parts[1:-1]) and len(told) == 2 and told[0] != told[1]


def repeats_prompt(answer: str, prompt: str) -> bool:
    """Whether the answer begins with the request, in any case."""
    return answer.strip().lower().startswith(prompt.strip().lower())


def is_one_of(answer: str, options: Sequence[str]) -> bool:
    """Whether one of the options stands in the answer, word for word."""
    return any(option in answer for option in options)
