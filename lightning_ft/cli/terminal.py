"""What people are shown and what they type in a terminal: text that cannot steer it, lines, and single keys."""

from __future__ import annotations

import os
import sys
import unicodedata

END = "q"
"""What the end of the input stands for."""
_ESCAPE = "\x1b"
_PAUSE = 0.05  # seconds within which the rest of a key's sequence follows the escape


def is_visible(character: str) -> bool:
    """Whether a character can be shown as it is: it neither steers the terminal nor hides; blanks of any width may."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def visible(text: str) -> str:
    """A text whose control characters are written out, so that data cannot steer the terminal."""
    return "".join(c if is_visible(c) or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def read_line(prompt: str) -> str:
    """What is typed up to Enter, without blanks around it; `END` at the end of the input, `?` for bytes that are no text."""
    try:
        line = input(prompt).strip()
        if not sys.stdin.isatty():
            print(line)  # as a terminal would
        return line
    except UnicodeDecodeError:
        return "?"
    except (EOFError, RuntimeError):  # the latter where there is no standard input at all
        print()
        return END


def has_keys() -> bool:
    """Whether single keys can be read: input and output are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def read_key(prompt: str) -> str:
    """The next key, without Enter: a character, or the sequence of a key that has no character (`ESC [ D`: to the left).

    Enter is an empty text. Where there is no terminal, a line is read.
    """
    if not has_keys():
        return read_line(prompt)
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    print(prompt, end="", flush=True)
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)  # what was typed ahead stays
        key = _key(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    print(visible(key) if not key.startswith(_ESCAPE) else "", flush=True)
    return key


def _key(descriptor: int) -> str:
    import select

    first = os.read(descriptor, 1)
    if first in (b"", b"\x04"):
        return END
    if first in (b"\r", b"\n"):
        return ""
    more = {0b110: 1, 0b1110: 2, 0b11110: 3}  # bytes that follow the first one of a character in UTF-8
    rest = next((count for head, count in more.items() if first[0] >> (6 - count) == head), 0)
    sequence = first + b"".join(os.read(descriptor, 1) for _ in range(rest))
    if first == _ESCAPE.encode() and select.select([descriptor], [], [], _PAUSE)[0]:
        sequence += os.read(descriptor, 8)
    return sequence.decode("utf-8", "replace")
