"""Secrets in a text: addresses, card numbers, keys and tokens, told by their form alone."""

from __future__ import annotations

import re

PATTERNS = {
    "e-mail address": r"(?<![\w.+-])[\w.+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}\b",
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})\b",
    "GitLab token": r"\bglpat-[\w-]{20,}",
    "Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Google API key": r"\bAIza[\w-]{35}(?![\w-])",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "OpenAI or Anthropic key": r"\bsk-(?:ant-|proj-)?[\w-]{20,}",
    "Stripe key": r"\b[sr]k_live_[A-Za-z0-9]{16,}\b",
    "PyPI or npm token": r"\b(?:pypi-[\w-]{50,}|npm_[A-Za-z0-9]{36})\b",
    "JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s:/@]+:[^\s:/@]+@[^\s/]+",
    "assigned secret": r"(?i)\b(?:api_?key|secret(?:_?key)?|access_?token|auth_?token|passw(?:or)?d)\b[\"']?\s*[:=]\s*[\"']?"
    r"(?=[^\s\"']*\d)[A-Za-z0-9+/_\-=.]{16,}",
}
"""What is looked for, and how it looks."""
RESERVED = re.compile(
    r"@(?:[\w-]+\.)*(?:example\.(?:com|net|org|edu)|(?:[\w-]+\.)?(?:example|test|invalid|localhost))$", re.IGNORECASE
)
"""Addresses that are nobody's (RFC 2606)."""
_COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}
_CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-]|\.\d)")


def secrets_in(text: str) -> set[str]:
    """The secrets in a text, card numbers as digits alone.

    E-mail addresses but for those reserved as examples; card numbers of 13 to 19 digits that begin with 2 to 6 and pass Luhn's
    check (ISO/IEC 7812-1, annex B); beginnings of private keys; tokens in the forms of well-known services; passwords in URLs;
    what is assigned to a name such as api_key, of 16 or more characters with a digit.
    """
    found = {match[0] for pattern in _COMPILED.values() for match in pattern.finditer(text)}
    found = {secret for secret in found if not RESERVED.search(secret)}
    digits = (re.sub(r"\D", "", match[0]) for match in _CARD.finditer(text))
    return found | {number for number in digits if luhn(number)}


def luhn(digits: str) -> bool:
    """Whether the sum of digits, from the right every second one doubled (and its digits added), is a multiple of 10.

    79927398713: 3+2+7+6+9+6+7+4+9+9+7 by places from the right with doubling (1 -> 2, 8 -> 16 -> 7 ...) is 70.
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0
