"""Slips as people make them, at a given rate, and never where one would change what is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_ft_datatools.ways import Job

_PROTECTED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"  # code
    r"|^(?: {4}|\t)[^\n]*|^\#{1,6} [^\n]*"  # code by its indentation; headings, which text templates have
    r"|\b[a-z]{2,10}://\S+|\bwww\.\S+|\b[\w.+-]{1,64}@[\w-]+\.[\w.-]+"  # addresses
    r"|</?[^<>\n]{1,80}>|\[/?[A-Z_]{2,20}\]"  # special tokens, tags, placeholders
    r"|\$(?=[^$\n]{0,200}[\\^_{])[^$\n]{1,200}\$|\\[A-Za-z]+"  # formulas
    r"|\"[^\"\n]{1,200}\"|\u201c[^\u201d\n]{1,200}\u201d|(?<!\w)'[^'\n]{1,200}'(?!\w)"  # what is quoted is often the matter
    r"|\b[^\W\d_]*[\d_]\w*(?:[.,:/-]\w*[\d_]\w*)*",  # numbers, and names with digits or underscores
    re.MULTILINE | re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_GAP = re.compile(r"(?<=\S) (?=\S)")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TRIES = 50


def protected(text: str) -> list[tuple[int, int]]:
    """Start and end of each part that stays as it is, in order and apart from one another.

    Code (fenced, in backticks, indented), headings, addresses, tags and special tokens, formulas, quotations of at most
    200 characters, words with digits or underscores, and whatever stands in braces.
    """
    found: list[tuple[int, int]] = []
    for start, end in sorted([*(match.span() for match in _PROTECTED.finditer(text)), *_braces(text)]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _braces(text: str) -> Iterator[tuple[int, int]]:
    """What stands in braces; of nested ones all pairs."""
    opened: list[int] = []
    for match in re.finditer(r"[{}]", text):
        if match[0] == "{":
            opened.append(match.start())
        elif opened:
            yield opened.pop(), match.end()


def noisy(text: str, kind: str, rate: float, draw: Random) -> str:
    """A text with slips of one kind.

    Args:
        text: any text.
        kind: a name of `KINDS`. `case`: each word, with the probability `rate`, in capitals, in small letters, or with the
            case of its first letter changed, whichever differs. `typo`: at each letter of a word of two or more, with the
            probability `rate`, a neighbouring key, the letter doubled, left out, or exchanged with the next one. `space`:
            each blank between two words, with the probability `rate`, doubled, left out, or a tab.
        rate: 0 to 1.
        draw: where chance comes from.
    """
    slip, out, at = KINDS[kind], [], 0
    for start, end in [*protected(text), (len(text), len(text))]:
        out += [slip(text[at:start], rate, draw), text[start:end]]
        at = end
    return "".join(out)


def _case(text: str, rate: float, draw: Random) -> str:
    def changed(match: re.Match[str]) -> str:
        word = match[0]
        forms = sorted({word.lower(), word.upper(), word[0].swapcase() + word[1:]} - {word})
        return draw.choice(forms) if forms and draw.random() < rate else word

    return _WORD.sub(changed, text)


def _typo(text: str, rate: float, draw: Random) -> str:
    return _WORD.sub(lambda match: _mistyped(match[0], rate, draw), text)


def _mistyped(word: str, rate: float, draw: Random) -> str:
    """A word with slips; it never vanishes."""
    out, at = "", 0
    while at < len(word):
        letter, following = word[at], word[at + 1 : at + 2]
        made, taken = letter, 1
        if len(word) > 1 and letter.lower() != letter.upper() and draw.random() < rate:
            slips = [(letter * 2, 1), ("", 1)]
            if near := _NEIGHBOURS.get(letter.lower()):
                key = draw.choice(near)
                slips.append((key.upper() if letter.isupper() else key, 1))
            if following.isalpha() and following != letter:
                slips.append((following + letter, 2))
            made, taken = draw.choice(slips)
        out += made
        at += taken
    return out or word


def _near_keys() -> dict[str, str]:
    """The keys around each letter of an American keyboard, whose rows are half a key apart."""
    near = {}
    for number, row in enumerate(_KEYS):
        for place, letter in enumerate(row):
            above = _KEYS[number - 1][place : place + 2] if number else ""
            below = _KEYS[number + 1][max(0, place - 1) : place + 1] if number + 1 < len(_KEYS) else ""
            near[letter] = row[max(0, place - 1) : place] + row[place + 1 : place + 2] + above + below
    return near


_NEIGHBOURS = _near_keys()


def _space(text: str, rate: float, draw: Random) -> str:
    return _GAP.sub(lambda _: draw.choice(("  ", "", "\t")) if draw.random() < rate else " ", text)


KINDS: Mapping[str, Callable[[str, float, Random], str]] = {"case": _case, "typo": _typo, "space": _space}
"""Each kind of slip by its name."""


@dataclass(frozen=True)
class Noise:
    """Rows with slips of one kind. A short row that came out without one is drawn again, up to 50 times."""

    kind: str
    rate: float
    rephrases: ClassVar[bool] = False
    unchanged: ClassVar[str] = "no slip was drawn"

    @property
    def name(self) -> str:
        """The kind."""
        return self.kind

    @property
    def details(self) -> Mapping[str, Any]:
        """The rate."""
        return {"rate": self.rate}

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
        """The texts of each job with slips."""
        for job in jobs:
            draw, texts = Random(f"{job.seed}/{job.copy}"), job.texts
            for _ in range(_TRIES if self.rate else 0):
                texts = tuple(noisy(text, self.kind, self.rate, draw) for text in job.texts)
                if texts != job.texts:
                    break
            yield texts
