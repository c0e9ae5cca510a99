"""Plain text files: a row per section of raw text, or per sample where they were written in one of the text templates."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, BinaryIO

from lightning_ft.data.text import MAX_RECORD, START_OF_TEXT, decode, read_lines, too_long
from lightning_ft.types import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_ft.data.badrows import BadRows

SECTION_BYTES = 2048
"""Longest section of raw text in UTF-8 bytes."""
HEAD_BYTES = 2**18
"""What is looked at of a file to see whether it holds samples."""
_CUT_AFTER = re.compile(r"[\s\u3002\uff01\uff1f]")
"""Where a long line is cut: white space and the full stops of scripts without spaces."""
_ABOVE = re.compile(rf"(?:{START_OF_TEXT})?(?:Below is an instruction that describes a task|<system>)")
_INSTRUCTION = re.compile(rf"(?:{START_OF_TEXT})?(?:### Instruction:|(?:<system>.*</system>\s*)?<instruction>)")
_RESPONSE = re.compile(r"### Response:|.*<response>")
_Line = tuple[int, str | None]
"""Its number and its text; None where it cannot be read, which has been noted."""


def read_plain(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
    """Raw text in sections, or the samples of a file that was written in one of the templates `alpaca` and `tags`."""
    lines = _lines(stream, source, bad)
    head, size = [], 0
    for line in lines:
        head.append(line)
        size += _size(line[1] or "")
        if size > HEAD_BYTES:
            break
    lines = itertools.chain(head, lines)
    if _begins_with_a_sample(text for _, text in head if text is not None and text.strip()):
        yield from _samples(lines, source, bad)
        return
    texts = ("\n".join(section).strip("\n") for section in _sections(text for _, text in lines if text is not None))
    for number, text in enumerate(filter(str.strip, texts), 1):
        yield Row({"text": text}, source, number, section=True)


def _lines(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[_Line]:
    for number, offset, raw in read_lines(stream, source, bad):
        text, problem = decode(raw, offset)
        if problem is not None:
            bad.add(source, number, problem, raw)
        yield number, text.rstrip("\r\n") if problem is None else None


def _begins_with_a_sample(head: Iterator[str]) -> bool:
    """Whether the first of these lines begins one, and its instruction and response follow."""
    first = next(head, "")
    if not (_ABOVE.match(first) or _INSTRUCTION.match(first)):
        return False
    lines = itertools.chain([first], head)
    asked = next((line for line in lines if _INSTRUCTION.match(line)), "")
    return bool(asked) and any(map(_RESPONSE.match, itertools.chain([asked], lines)))


def _samples(lines: Iterator[_Line], source: str, bad: BadRows) -> Iterator[Row]:
    """A row per instruction, with the number of its first line; none of a sample of which a line cannot be read.

    What stands above an instruction belongs to it from `<system>` or the template's own words on.
    """
    for sample, size in _instructions(lines):
        start, texts = sample[0][0], [text for _, text in sample if text is not None]
        if size > MAX_RECORD:
            bad.add(source, start, too_long(), "\n".join(texts))
        elif len(texts) == len(sample):
            yield Row({"text": "\n".join(texts).strip()}, source, start)


def _instructions(lines: Iterator[_Line]) -> Iterator[tuple[list[_Line], int]]:
    """The lines of each sample, from its first one that is not blank, and its size; lines beyond `MAX_RECORD` are left out."""
    sample: list[_Line] = []
    size, asked = 0, False
    for line in lines:
        text = line[1]
        if text is not None and (_ABOVE.match(text) or _INSTRUCTION.match(text)):
            if asked:
                yield sample, size
                sample, size, asked = [], 0, False
            asked = _INSTRUCTION.match(text) is not None
        if sample or text is None or text.strip():
            if size <= MAX_RECORD:
                sample.append(line)
            size += _size(text or "")
    if sample:
        yield sample, size


def _sections(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines, or pieces of very long ones, in lists that fit `SECTION_BYTES`; a cut is best made after a blank line."""
    section: list[str] = []
    size = boundary = 0
    for line in lines:
        for piece in _pieces(line):
            while section and size + _size(piece) > SECTION_BYTES:
                cut = boundary or len(section)
                yield section[:cut]
                section = section[cut:]
                size, boundary = sum(map(_size, section)), 0
            section.append(piece)
            size += _size(piece)
        if not line.strip():
            boundary = len(section)
    yield section


def _size(line: str) -> int:
    """Bytes of a line with its end."""
    return len(line.encode()) + 1


def _pieces(line: str) -> Iterator[str]:
    """A line in pieces that fit a section, cut behind a space or full stop where there is one."""
    raw, at = line.encode(), 0
    while len(raw) - at >= SECTION_BYTES:
        head = raw[at : at + SECTION_BYTES - 1].decode("utf-8", "ignore")
        piece = head[: max((match.end() for match in _CUT_AFTER.finditer(head)), default=len(head))]
        yield piece
        at += len(piece.encode())
    yield raw[at:].decode()
