"""Plain text files: a row per section of raw text, or per sample where they were written in one of the text templates."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, BinaryIO

from lightning_ft.data.text import MAX_RECORD, decode, read_lines, too_long
from lightning_ft.types import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_ft.data.badrows import BadRows

SECTION_BYTES = 2048
"""Longest section of raw text in UTF-8 bytes."""
_CUT_AFTER = re.compile(r"[\s\u3002\uff01\uff1f]")
"""Where a long line is cut: white space and the full stops of scripts without spaces."""
_ABOVE = re.compile(r"Below is an instruction that describes a task|<system>")
_INSTRUCTION = re.compile(r"^(?:### Instruction:|<instruction>)")
_RESPONSE = re.compile(r"^(?:### Response:|<response>)")
_END = re.compile(r"(?:</s>|<eos>|<\|(?:endoftext|end_of_text|im_end|eot_id)\|>)\s*\Z")
_HEAD = 200  # lines that are looked at for samples
_Line = tuple[int, str]
"""Its number and its text."""


def read_plain(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[Row]:
    """Raw text in sections, or the samples of a file that was written in one of the templates `alpaca` and `tags`."""
    lines = _clean(stream, source, bad)
    head = list(itertools.islice(lines, _HEAD))
    lines = itertools.chain(head, lines)
    if _holds_samples([text for _, text in head]):
        yield from _samples(lines, source, bad)
        return
    texts = ("\n".join(section).strip("\n") for section in _sections(text for _, text in lines))
    for number, text in enumerate(filter(str.strip, texts), 1):
        yield Row({"text": text}, source, number)


def _clean(stream: BinaryIO, source: str, bad: BadRows) -> Iterator[_Line]:
    for number, offset, raw in read_lines(stream, source, bad):
        text, problem = decode(raw, offset)
        if problem is None:
            yield number, text.rstrip("\r\n")
        else:
            bad.add(source, number, problem, raw)


def _holds_samples(head: list[str]) -> bool:
    """Whether the first line begins a sample; or, below a system's text, one is there with the token that ends it."""
    first = next(filter(str.strip, head), "")
    if _ABOVE.match(first) or _INSTRUCTION.match(first):
        return True
    remaining = iter(head)
    return all(any(pattern.search(line) for line in remaining) for pattern in (_INSTRUCTION, _RESPONSE, _END))


def _samples(lines: Iterator[_Line], source: str, bad: BadRows) -> Iterator[Row]:
    """A row per instruction, with the number of its first line.

    What stands above an instruction belongs to it from the system's text or the template's own words on, or from the
    end-of-text token of the sample before.
    """
    for sample in _instructions(lines):
        start = sample[0][0]
        if sum(len(text) for _, text in sample) > MAX_RECORD:
            bad.add(source, start, too_long(), sample[0][1])
        else:
            yield Row({"text": "\n".join(text for _, text in sample).strip()}, source, start)


def _instructions(lines: Iterator[_Line]) -> Iterator[list[_Line]]:
    """The lines of each sample, from its first one that is not blank; those beyond `MAX_RECORD` are left out."""
    sample: list[_Line] = []
    size, asked, ended = 0, False, False
    for line in lines:
        text = line[1]
        if asked and text.strip() and (ended or _ABOVE.match(text) or _INSTRUCTION.match(text)):
            yield sample
            sample, size, asked = [], 0, False
        if text.strip() or sample:
            if size <= MAX_RECORD:
                sample.append(line)
            size += len(text)
        asked = asked or _INSTRUCTION.match(text) is not None
        ended = _END.search(text) is not None if text.strip() else ended
    if sample:
        yield sample


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
    return len(line.encode()) + 1


def _pieces(line: str) -> Iterator[str]:
    """A line in pieces that fit a section, cut behind a space or full stop where there is one."""
    while _size(line) > SECTION_BYTES:
        head = line.encode()[: SECTION_BYTES - 1].decode("utf-8", "ignore")
        cut = max((match.end() for match in _CUT_AFTER.finditer(head)), default=len(head))
        yield line[:cut]
        line = line[cut:]
    yield line
