"""Which language an answer is in, by its script and its most frequent words: enough to see a wrong one, no dependency."""

from __future__ import annotations

import functools
import re
from collections import Counter

from lightning_ft_tasks.wordlists import text_of_list

SCRIPTS = {"Arabic": ("ar", "fa", "ur"), "Cyrillic": ("ru", "uk", "bg"), "Devanagari": ("hi", "mr", "ne"), "Latin": ()}
"""Languages that share a script; Latin is that of all others which have words in the list."""
_RANGES = (("Latin", 0x41, 0x24F), ("Latin", 0x1E00, 0x1EFF), ("Cyrillic", 0x400, 0x52F), ("Arabic", 0x600, 0x6FF),
           ("Devanagari", 0x900, 0x97F))  # fmt: skip


@functools.cache
def _lists() -> tuple[dict[str, frozenset[str]], dict[str, str], tuple[tuple[str, int, int], ...]]:
    """Words and letters of each language, and the scripts: those above, and one for each language that has its own."""
    words, letters, ranges = {}, {}, list(_RANGES)
    for line in text_of_list("languages.txt").splitlines():
        name, _, rest = line.partition(":")
        if own := re.fullmatch(r"\{(\w+)-(\w+)\}", rest.strip()):
            ranges.append((name, int(own[1], 16), int(own[2], 16)))
            words[name] = frozenset[str]()
            continue
        found = re.match(r"\s*(?:\[(.+?)\])?(.*)", rest)
        assert found is not None, "the pattern matches any line"
        letters[name], words[name] = found[1] or "", frozenset(found[2].split())
    return words, letters, tuple(ranges)


LANGUAGES = tuple(sorted(_lists()[0]))
"""ISO 639-1 codes of the languages that are told apart."""


def language_of(text: str) -> str | None:
    """The language of a text; None where it has too little to say.

    The script that most letters belong to decides; among languages that share it, letters that only one of them has, and the
    number of a text's words that are among the language's most frequent ones, those of one letter by half.
    """
    words, letters, ranges = _lists()
    text = text.lower()
    script = _script(text, ranges)
    if script is None or script not in SCRIPTS:
        return script
    shared = {name for names in SCRIPTS.values() for name in names}
    names = SCRIPTS[script] or [name for name in words if words[name] and name not in shared]
    said = Counter(re.findall(r"[\w'\u0900-\u097f\u200c]+", text))
    scores = {}
    for name in names:
        hits = sum(count * min(len(word), 2) for word, count in said.items() if word in words[name])
        scores[name] = hits + sum(text.count(letter) for letter in letters[name])
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] else None


def _script(text: str, ranges: tuple[tuple[str, int, int], ...]) -> str | None:
    """The script of most letters; Japanese is what has kana for a tenth or more of its letters."""
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            found.update({script: count for script, low, high in ranges if low <= ord(char) <= high})
    if not found:
        return None
    if found["ja"] * 10 >= found["ja"] + found["zh"] and found["ja"]:
        found["ja"] += found.pop("zh", 0)
    return found.most_common(1)[0][0]


def is_in_language(answer: str, language: str) -> bool:
    """Whether an answer is in a language, given as its ISO 639-1 code.

    The reference of IFEval asks the package langdetect, which guesses from letters too and takes text without any as right.
    """
    return language_of(answer) == language
