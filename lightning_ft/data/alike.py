"""Rows whose prompts are nearly the same: kept in one split, where a plugin can tell them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lightning_ft.data.joined import joined
from lightning_ft.types import Classified, Conversation, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft.registry import Registry
    from lightning_ft.types import Example

MOST = 20_000
"""Rows up to which `fit` looks; `data split` looks at any number."""
FAMILY = 0.05
"""Largest share of the rows that may hang together: beyond, it is the wording of a task and no duplicate."""
_SMALL_FAMILY = 20


def finders(registry: Registry) -> list[str]:
    """`plugin version` of those that tell alike prompts: they are part of what decides a split."""
    versions = {info.name: info.version for info in registry.plugins}
    found = registry.manager.hook.find_alike.get_hookimpls()
    return sorted(f"{impl.plugin_name} {versions.get(impl.plugin_name, '')}".strip() for impl in found)


def prompt_of(example: Example) -> str:
    """What makes an example another one than those beside it: its last user turn, or its text."""
    if isinstance(example, (Text, Classified)):
        return example.text
    messages = example.messages if isinstance(example, Conversation) else example.prompt
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def alike_rows(prompts: Sequence[str], registry: Registry, say: Callable[[str], None]) -> list[tuple[int, int]]:
    """Pairs of rows whose prompts are nearly the same.

    Args:
        prompts: of each row.
        registry: for the plugins.
        say: told what was found, and what was not looked for.
    """
    if len(prompts) > MOST:
        say(f"data: nearly the same prompts are not looked for among more than {MOST:,} rows; `data split` does")
        return []
    pairs = list(registry.manager.hook.find_alike(prompts=prompts) or ())
    kept = [pair for pair, family in zip(pairs, _families(pairs, len(prompts)), strict=True) if not family]
    if kept:
        say(f"data: {len(kept):,} pairs of nearly the same prompts, each in one split")
    if len(kept) < len(pairs):
        say("data: prompts that differ in a word or two are many here: taken for a task's wording, and split row by row")
    return kept


def _families(pairs: Sequence[tuple[int, int]], rows: int) -> list[bool]:
    """Whether each pair belongs to more rows that hang together than duplicates do."""
    roots = joined(rows, pairs)
    sizes = Counter(roots)
    most = max(_SMALL_FAMILY, FAMILY * rows)
    return [sizes[roots[one]] > most for one, _ in pairs]
