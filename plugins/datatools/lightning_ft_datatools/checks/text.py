"""Checks of single rows: turns, empty and vague answers, encoding, markers, secrets."""

from __future__ import annotations

import itertools
import re
import statistics
from typing import TYPE_CHECKING

from lightning_ft.types import Conversation, Preference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_ft.types import Message
    from lightning_ft_datatools.records import Record

_VAGUE = re.compile(
    r"(i (do not|don'?t) know|(i am|i'm) not sure|not sure|no idea|idk|n/?a|not applicable|no answer|unknown answer|"
    r"see (above|below|answer)|same as (above|before)|it depends|maybe|whatever|to ?do|t\.?b\.?[da]\.?|placeholder|"
    r"lorem ipsum.*|asdf\w*|xxx+|\?+|\.+|-+|insert answer here|your answer here|\[.*answer.*\])[.!\u2026]*",
    re.IGNORECASE | re.DOTALL,
)
_REFUSES = re.compile(
    r"as an? (ai|artificial intelligence)( language)? (model|assistant)|i('m| am)( just)? an ai\b", re.IGNORECASE
)
_MARKERS = re.compile(
    r"<\|[a-z_ ]{2,30}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^<>]{2,40}\uff5c>"
    r"|(?:^|(?<=\s))### (?:Instruction|Response|Input):(?=\s|$)"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_SECRETS = {
    # As the providers document them; the same forms that GitHub's secret scanning and gitleaks look for.
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "API key": r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|AIza[0-9A-Za-z_-]{35})(?![A-Za-z0-9_-])",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}",
    "password": r"\b(?i:password|passwd|pwd|api[_-]?key|secret(?:[_-]?key)?|access[_-]?token)\s*[=:]\s*['\"]?"
    r"(?=[^\s'\"]*[0-9])(?=[^\s'\"]*[A-Za-z])[^\s'\"<>{}()$]{8,}",
    "password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]{3,}@[\w.-]+",
}
_SECRET = re.compile("|".join(f"(?P<k{number}>{pattern})" for number, pattern in enumerate(_SECRETS.values())))
_HINTS = (
    "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "sk-", "hf_", "aiza", "private key",
    "eyj", "passw", "pwd", "api_key", "api-key", "apikey", "secret", "access_token", "access-token", "accesstoken", "://",
)  # fmt: skip
"""What a text with a secret has, in lower case: one without any of them is spared the search, ten times as long."""
_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@((?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})\b")
_NOBODYS = re.compile(
    r"(^|\.)(example\.(com|org|net|edu)|example|invalid|localhost|test|(domain|email|company)\.com)$", re.IGNORECASE
)
"""Domains of RFC 2606, and those that people write for it."""
SHORT = 0.05
"""Share of the median answer's length below which an answer is very short."""
_FEW = 0.03  # a larger share of short answers is how the data are


def check_turns(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Conversations that a model cannot learn to take part in."""
    for record in records:
        if isinstance(record.example, Conversation) and (why := _unbalanced(record.example.messages)):
            yield "turns", record, why


def _unbalanced(messages: Sequence[Message]) -> str:
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        return f"turn {roles.index('system', 1) + 1} is a system text, which belongs first"
    turns = [role for role in roles if role != "system"]
    if not turns or turns[0] != "user":
        return f"begins with {turns[0] if turns else 'nothing'}, expected user"
    if turns[-1] != "assistant":
        return f"ends with {turns[-1]}, expected assistant"
    for number, (before, after) in enumerate(itertools.pairwise(turns), 2):
        if before == after and before in ("user", "assistant"):
            return f"turn {number} is a second {after} turn in a row"
        if before == "user" and after == "tool":
            return f"turn {number} is a tool's answer that the assistant did not ask for"
    return ""


def check_answers_differ(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Pairs without a better answer."""
    for record in records:
        example = record.example
        if isinstance(example, Preference) and example.chosen == example.rejected:
            yield "same_answers", record, "the better and the worse answer are the same"


def check_empty(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Prompts and answers without a single letter or sign."""
    for record in records:
        if not record.is_raw and not record.prompt.strip():
            yield "empty_prompt", record, "the prompt is empty"
        empty = [i for i, m in enumerate(record.messages, 1) if m.role == "assistant" and not m.content.strip() and not m.extra]
        if empty:
            yield "empty_answer", record, f"turn {empty[0]} is empty" if len(record.messages) > 2 else "the answer is empty"


def check_answers(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Answers that say nothing, and those far shorter than all others."""
    answered = [r for r in records if r.label is None and not r.is_raw and r.answer.strip()]
    lengths = [len(record.answer.strip()) for record in answered]
    limit = SHORT * statistics.median(lengths) if lengths else 0.0
    short = [record for record, length in zip(answered, lengths, strict=True) if length < limit]
    flagged = set(map(id, short)) if len(short) <= max(1, _FEW * len(answered)) else set()
    for record in answered:
        answer = record.answer.strip()
        if _VAGUE.fullmatch(answer):
            yield "vague_answer", record, f"'{answer:.60}'"
        elif found := _REFUSES.search(answer[:200]):
            yield "vague_answer", record, f"speaks of itself: '{found.group()}'"
        elif id(record) in flagged:
            usual = statistics.median(lengths)
            yield "short_answer", record, f"'{answer:.60}', where the median answer has {usual:,.0f} characters"


def is_vague(answer: str) -> bool:
    """Whether an answer says nothing."""
    return bool(_VAGUE.fullmatch(answer.strip()) or _REFUSES.search(answer[:200]))


def check_encoding(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Text that was decoded wrongly, and characters that nobody can see."""
    from ftfy.badness import is_bad

    for record in records:
        for text in record.texts:
            if found := _CONTROL.search(text):
                yield "encoding", record, f"has the character U+{ord(found.group()):04X}"
                break
            if not text.isascii() and is_bad(text):
                yield "encoding", record, f"looks like UTF-8 read as something else: '{_around(text)}'"
                break


def _around(text: str) -> str:
    """The first line with the trouble, shortened to its place."""
    from ftfy.badness import BADNESS_RE

    found = BADNESS_RE.search(text)
    start = max(0, found.start() - 15) if found else 0
    return " ".join(text[start : start + 40].split())


def marker_check(tokens: Sequence[str]) -> Callable[[Sequence[Record]], Iterator[tuple[str, Record, str]]]:
    """A check for these special tokens, and for those that many templates have, in what people wrote."""
    own = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")

    def check(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
        for record in records:
            found = next((f for text in record.texts if (f := own.search(text) or _MARKERS.search(text))), None)
            if found:
                yield "marker", record, f"contains '{found.group().strip()}'"

    return check


def check_secrets(records: Sequence[Record]) -> Iterator[tuple[str, Record, str]]:
    """Keys, passwords and addresses of people; what is found is not repeated in the report."""
    names = tuple(_SECRETS)
    for record in records:
        for text in record.texts:
            lower = text.lower()
            if any(hint in lower for hint in _HINTS) and (found := _SECRET.search(text)):
                number = next(int(name[1:]) for name, value in found.groupdict().items() if value is not None)
                yield "secret", record, f"a {names[number]} at character {found.start() + 1}"
                break
        for text in record.texts:
            if "@" in text and (mails := [f for f in _EMAIL.finditer(text) if not _NOBODYS.search(f.group(1))]):
                yield "email", record, f"{len(mails)} of them, the first at {mails[0].group(1)}"
                break
