"""Options as they are typed after `fit`: the inverse of reading a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_ft.config import FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_ft.cli.resolve import Request


def words(request: Request, without: Iterable[str] = ()) -> list[str]:
    """The flags that say what a request does, wherever it has it from: flags, files or presets.

    Args:
        request: Checked.
        without: Names of options that are left out.
    """
    left_out = frozenset(without)
    values = {**request.values, **({"trainer": request.trainer} if request.trainer else {})}
    return [word for name, value in values.items() if name not in left_out for word in _option(name, value)]


def _option(name: str, value: Any) -> Iterator[str]:
    """A flag with its words; of a section with options a flag for each."""
    if isinstance(value, Mapping):
        options = dict(value)
        if "name" in options:
            yield from (f"--{name}", str(options.pop("name")))
        for key, part in options.items():
            yield from _option(f"{name}.{key}", part)
    elif name in FILES and isinstance(value, Sequence) and not isinstance(value, str):
        yield from (f"--{name}", *map(str, value))
    else:
        yield from (f"--{name}", value_word(value))


def value_word(value: Any) -> str:
    """A value as one word: true, none, 0.1, q_proj,v_proj."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(part, str) and part and not set(part) & set(",[]") for part in value)
        return ",".join(value) if value and plain else json.dumps(list(value), ensure_ascii=False)
    return str(value)
