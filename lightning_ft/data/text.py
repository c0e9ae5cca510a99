"""Lines of strict UTF-8 and of a bounded size, and what is wrong with a text or a value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.data.badrows import BadRows

MAX_RECORD = 8 * 2**20
"""Longest record in bytes: some two million tokens, which take a gigabyte while they are made."""
MOST_NESTED = 200
"""Lists and objects within one another that a row may have."""
TO_UTF8 = "`iconv -f LATIN1 -t UTF-8` (or from whatever it was written in)"
"""What people type who have a file in another encoding."""
START_OF_TEXT = r"<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<\|bos\|>|\[gMASK\]<sop>"
END_OF_TEXT = r"</s>|<eos>|<\|(?:endoftext|end_of_text|im_end|eot_id|end|eos)\|>"
"""What tokens at either end of a text are written as in files of rendered texts, as regular expressions."""
BOM = b"\xef\xbb\xbf"
_DAMAGED = re.compile(r"[\x00\ud800-\udfff]")


def read_lines(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, line) without a byte order mark; overlong lines are noted and passed over."""
    number = end = 0
    while raw := stream.readline(MAX_RECORD + 1):
        number, offset = number + 1, end
        end += len(raw)
        if len(raw) > MAX_RECORD:
            bad.add(source, number, too_long(), raw)
            while not raw.endswith(b"\n") and (raw := stream.readline(MAX_RECORD + 1)):
                end += len(raw)
            continue
        if number == 1 and raw.startswith(BOM):
            raw, offset = raw[len(BOM) :], len(BOM)
        yield number, offset, raw


def too_long() -> str:
    """What is wrong with a record above the limit."""
    return f"expected a record of at most {MAX_RECORD >> 20} MiB, got a longer one; split it into several rows"


def decode(raw: bytes, offset: int) -> tuple[str, str | None]:
    """The text, and what is wrong with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"0x{raw[error.start]:02x} at byte {offset + error.start} of the file"
        return "", f"expected UTF-8, got the byte {where}; convert the file with {TO_UTF8}"
    at = raw.find(b"\0")
    return ("", f"expected text, got a NUL at byte {offset + at} of the file") if at >= 0 else (text, None)


def damage_in(value: Any) -> str | None:
    """The first NUL or half surrogate pair within a value, as `U+D83D`."""
    if isinstance(value, str):
        match = _DAMAGED.search(value)
        return f"U+{ord(match[0]):04X}" if match else None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((found for item in value if (found := damage_in(item))), None)
    return None


def nested(value: Any) -> int:
    """How deep lists and objects stand within one another; looked at without recursion, which they could exhaust."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
