"""The answer within a longer text: whether a reference occurs in it, and the final answer after a way to it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, ClassVar

from lightning_ft.words import CHARACTERS
from lightning_ft_tasks.answer_checks import sentences_of
from lightning_ft_tasks.metrics import TextMetric
from lightning_ft_tasks.reasoning import PREFIX, PREFIX_KEY
from lightning_ft_tasks.words import squad_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.types import ScoredRow

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
_SAID = re.compile(r"\b(?:the|my)?\s*(?:final\s+)?answer\s+is\b\s*:?|\bfinal\s+answer\s*:", re.IGNORECASE)
_LETTER = re.compile(r"[\s*(]*([A-Za-z])[)*]*\.(?=\s|$)")
_OPERATOR = re.compile(r"[-+*/^=<>()\[\]{}|]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


class AnswerMatch(TextMetric):
    """Share of answers in which a reference occurs, word for word, after SQuAD's normalisation.

    Lower case, no ASCII punctuation, no articles (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1); each Han, kana and
    hangul character is a word. "It is Paris, of course." contains "Paris", and "party" does not contain "art".
    """

    name: ClassVar[str] = "answer_match"

    @property
    def signature(self) -> str:
        """How texts are made comparable."""
        return "norm:squad|within:words"

    def compare(self, prediction: str, reference: str) -> float:
        """1 where the reference's words stand in the prediction side by side, else 0."""
        said, wanted = (squad_words(re.sub(f"[{CHARACTERS}]", r" \g<0> ", text)) for text in (prediction, reference))
        if not wanted:
            return float(not said)
        return float(any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)))


class FinalAnswer(TextMetric):
    r"""Share of answers whose final answer is that of a reference.

    In both texts it is, by the first of these that is there, after a last `</think>` (without it nothing that follows
    `<think>` is an answer):

    1. what follows the row's own `answer_prefix` at the start of a line, `Answer: ` by default, the last one in the text;
    2. what follows the last `####` (GSM8K, Cobbe et al. 2021, arXiv:2110.14168);
    3. the contents of the last `\boxed{...}`;
    4. what follows the last "the answer is" or "final answer:", in any case;
    5. the last number, where the reference's final answer is a number;
    6. the whole text.

    1 and 2 reach to the end of the line, 4 to that of the sentence. Numbers are compared as they are written: without commas,
    currency and per cent signs, superfluous zeros ("$1,234.50" is "1234.5", "42%" is "42", "3/4" is not "0.75"); of a longer
    piece the number that stands first counts, after the last "=" in it. Single letters and formulas ("B", "x - 1",
    "(3, -2)": an operator or brackets, and no word of three letters) are compared sign by sign, others by SQuAD's words.
    """

    name: ClassVar[str] = "final_answer"

    @property
    def signature(self) -> str:
        """The rules by name."""
        return "final:prefix>####>boxed>said>last_number>whole|numbers:as_written|formulas:signs|text:squad"

    def score(self, row: ScoredRow) -> float:
        """1 where the final answers are equal, else 0.

        Raises:
            ValueError: the row has no generated answer or no reference.
        """
        prefix = row.example.meta.get(PREFIX_KEY)
        if row.prediction is None or not row.references or not isinstance(prefix, str):
            return super().score(row)
        return max(compare_final(row.prediction, reference, prefix) for reference in row.references)

    def compare(self, prediction: str, reference: str) -> float:
        """1 where the final answers are equal, else 0."""
        return compare_final(prediction, reference)


def compare_final(prediction: str, reference: str, prefix: str = PREFIX) -> float:
    """1 where two texts have the same final answer, else 0."""
    wanted = marked_answer(reference, prefix)
    wanted = after_thinking(reference) if wanted is None else wanted
    said = marked_answer(prediction, prefix, letter=_single(wanted))
    number = as_number(wanted)
    if number is not None:
        return float((last_number(after_thinking(prediction)) if said is None else number_in(said)) == number)
    found = after_thinking(prediction) if said is None else said
    if _single(wanted) or _is_formula(found) or _is_formula(wanted):  # in which no sign is punctuation
        one, other = _signs(found), _signs(wanted)
        return float(bool(one) and one == other)
    words = squad_words(plain(found))
    return float(bool(words) and words == squad_words(plain(wanted)))


def _single(text: str) -> bool:
    """Whether it is one letter, as of a choice, with or without brackets."""
    return bool(re.fullmatch(r"[\s(\[*]*[A-Za-z][\s)\]*.]*", plain(text)))


def _is_formula(text: str) -> bool:
    """Whether it has an operator or brackets in it and no word of three letters, as `x - 1` and `(3, -2)`."""
    bare = plain(text)
    return bool(_OPERATOR.search(bare)) and not re.search(r"[^\W\d_]{3,}", re.sub(r"\\[a-zA-Z]+", "", bare))


def _signs(text: str) -> str:
    """Its signs in a row, without case and what means nothing: blanks, commas in numbers, braces around one sign, an end."""
    bare = re.sub(r"\{(\w)\}", r"\1", "".join(plain(text).split()).casefold())
    bare = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", bare).strip(".,;:?$*")  # "!" is a factorial's
    wrapped = re.fullmatch(r"\(([^()]*)\)|\[([^\[\],]*)\]", bare)  # [0,1] is not (0,1)
    return (wrapped[1] or wrapped[2] or "") if wrapped else bare


def marked_answer(text: str, prefix: str = PREFIX, *, letter: bool = False) -> str | None:
    """The final answer that a text marks as such (rules 1 to 4); None where it marks none.

    Args:
        text: what somebody answered.
        prefix: of the row.
        letter: whether one letter is looked for, which else would be the initial of a name.
    """
    text = after_thinking(text)
    own = re.compile(rf"^[ \t*]*{re.escape(prefix.strip())}", re.MULTILINE | re.IGNORECASE) if prefix.strip() else None
    for marker in (own, re.compile("####")):
        if marker is not None and (line := _line_after_last(marker, text)) is not None:
            return line
    if boxed := list(boxed_in(text)):
        return boxed[-1].strip()
    line = _line_after_last(_SAID, text)
    if letter and line is not None and (choice := _LETTER.match(line)):
        return choice[1]
    return line if line is None else "".join(sentences_of(line)[:1])


def _line_after_last(marker: re.Pattern[str], text: str) -> str | None:
    """The first line with something in it after the last place of a marker; None: it is not there."""
    found = list(marker.finditer(text))
    return text[found[-1].end() :].strip().split("\n")[0].strip() if found else None


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; nothing where thinking began and did not end."""
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def boxed_in(text: str) -> Iterator[str]:
    r"""The contents of each `\boxed{...}`, braces within it included; one that does not end is none."""
    for start in re.finditer(r"\\f?boxed\s*\{", text):
        depth = 1
        for at in range(start.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                yield text[start.end() : at]
                break


def plain(text: str) -> str:
    """A piece without the commands of LaTeX that its text stands in, currency and per cent signs, and bold type."""
    text = _LATEX.sub(r"\1", _FRACTION.sub(r"\1/\2", text))
    text = re.sub(r"\\[,!;: ]|\\[()\[\]]|\\(?=[$%])", "", text).replace("**", "")
    return "".join(" " if unicodedata.category(char) == "Sc" or char == "%" else char for char in text).strip()


def as_number(text: str) -> str | None:
    """A text that is nothing but a number (a full stop may follow), as one number is written; None: it is none."""
    bare = plain(text).rstrip(".").strip()
    return _written(bare) if _NUMBER.fullmatch(bare) else None


def number_in(text: str) -> str | None:
    """The first number of a piece, after its last "="; None: it has none."""
    found = _NUMBER.search(plain(text).rpartition("=")[2])
    return _written(found[0]) if found else None


def last_number(text: str) -> str | None:
    """The last number of a text; None: it has none."""
    found = _NUMBER.findall(plain(text))
    return _written(found[-1]) if found else None


def _written(number: str) -> str:
    """The one way to write a number: no plus, thousands commas, or zeros without a meaning."""
    parts = []
    for part in number.replace(",", "").split("/"):
        part = part.strip().removeprefix("+")
        sign = "-" if part.startswith("-") else ""
        whole, dot, rest = part.removeprefix("-").partition(".")
        rest = rest.rstrip("0") if dot else ""
        whole = whole.lstrip("0") or "0"
        value = f"{whole}.{rest}" if rest else whole
        parts.append(value if value == "0" else sign + value)
    return "/".join(parts)
