"""Trees of replies, as Open Assistant publishes them: one row is many conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_ft.errors import UsageError, json_name
from lightning_ft_tasks.chat import Chat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROLES = {"prompter": "user", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Spellings of the two speakers."""


@dataclass(frozen=True)
class Tree(Chat):
    """A first message with replies, which have replies: `{"prompt": {"text", "role", "replies": [...]}}`.

    Every path from the first message to a last answer is a conversation. A reply that several of them share trains in the
    first only, so that none counts more often than its writer wrote it. Deleted messages end their path. Further columns
    of the row are kept in `meta`.
    """

    name: ClassVar[str] = "tree"
    precedence: ClassVar[int] = 60
    columns_help: ClassVar[str] = "message_tree_id, prompt (text, role, replies)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "message_tree_id": "t1",
            "prompt": {
                "text": "Tea?", "role": "prompter", "replies": [
                    {"text": "Yes.", "role": "assistant", "rank": 1, "replies": []},
                    {"text": "No.", "role": "assistant", "rank": 0, "replies": [
                        {"text": "Why?", "role": "prompter", "replies": [
                            {"text": "I had coffee.", "role": "assistant", "rank": 0},
                            {"text": "Because.", "role": "assistant", "rank": 1},
                        ]},
                    ]},
                ],
            },
        },
    )  # fmt: skip
    """Rows as the task reads them."""

    replies: Literal["all", "best"] = "all"
    """Which answers are followed: all, or of each message's answers the one of the best (lowest) `rank`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replies not in ("all", "best"):
            raise UsageError(f"Expected --task.replies to be all or best; got {self.replies!r}.")

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows of a tree with its first message."""
        return columns >= {"message_tree_id", "prompt"}

    def unfold(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The conversations of a tree, depth first; a shared answer has the weight 0 in all but the first of them."""
        meta = {key: value for key, value in row.items() if key != "prompt"}
        seen: set[int] = set()
        conversations = []
        for path in self._paths(row.get("prompt"), "prompt", ()):
            turns = []
            for node in path:
                turn = {"role": ROLES[node["role"]], "content": node["text"]}
                if id(node) in seen and turn["role"] == "assistant":
                    turn["weight"] = 0.0
                seen.add(id(node))
                turns.append(turn)
            conversations.append({**meta, "messages": turns})
        if not conversations:
            raise ValueError("expected a tree with at least one answer, got none")
        return conversations

    def _paths(self, node: Any, place: str, before: tuple[Any, ...]) -> Iterator[tuple[Mapping[str, Any], ...]]:
        """The paths to the last answers at and below a message."""
        _check(node, place)
        path = (*before, node)
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise ValueError(f"expected '{place}.replies' to be a list, got {json_name(replies)}")
        kept = [(number, reply) for number, reply in enumerate(replies, 1) if not _deleted(reply)]
        if self.replies == "best" and node["role"] in ("prompter", "user", "human"):
            kept = sorted(kept, key=lambda item: _rank(item[1]))[:1]
        found = False
        for number, reply in kept:
            for below in self._paths(reply, f"{place}.replies[{number}]", path):
                found = True
                yield below
        if not found and ROLES[node["role"]] == "assistant":
            yield path


def _check(node: Any, place: str) -> None:
    if not isinstance(node, Mapping):
        raise ValueError(f"expected '{place}' to be a message with text, role and replies, got {json_name(node)}")
    if node.get("role") not in ROLES:
        raise ValueError(f"expected '{place}.role' to be one of {', '.join(ROLES)}, got {node.get('role')!r}")
    if not isinstance(node.get("text"), str):
        raise ValueError(f"expected '{place}.text' to be text, got {json_name(node.get('text'))}")


def _deleted(node: Any) -> bool:
    return isinstance(node, Mapping) and node.get("deleted") is True


def _rank(node: Any) -> float:
    """The place that people gave to an answer; unranked ones come last."""
    rank = node.get("rank") if isinstance(node, Mapping) else None
    return float(rank) if isinstance(rank, (int, float)) else float("inf")
