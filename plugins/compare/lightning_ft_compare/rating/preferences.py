"""Ratings as rows that preference training reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft_compare.rating.folder import Rating
    from lightning_ft_compare.rating.pairs import Answers


def preferences(
    found: Sequence[Rating], pairs: Sequence[Answers], criterion: str
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row per pair of answers of which most raters prefer one by a criterion, and how many pairs were left out why.

    Rows have `prompt`, or all of them `messages` where a prompt has more than one turn, and `chosen`, `rejected`, `row`.

    Args:
        found: Ratings that count.
        pairs: What was rated.
        criterion: The one that decides.
    """
    votes: dict[str, list[Rating]] = defaultdict(list)
    for rating in found:
        if rating.criterion == criterion and rating.choice != "skip":
            votes[rating.key].append(rating)
    chosen: list[tuple[Answers, str, str]] = []
    counts = dict.fromkeys(("rows", "ties", "both_bad", "same", "divided", "empty", "not_rated"), 0)
    for pair in pairs:
        won = Counter(rating.winner for rating in votes[pair.key])
        said = Counter(rating.choice for rating in votes[pair.key])
        better, worse = pair.of if won["A"] > won["B"] else pair.of[::-1]
        if not said:
            counts["not_rated"] += 1
        elif won["A"] == won["B"]:
            why = (
                "divided" if won["A"] else "same" if said["same"] else "ties" if said["tie"] >= said["both_bad"] else "both_bad"
            )
            counts[why] += 1
        elif not (better.strip() and worse.strip() and pair.prompt.strip()):
            counts["empty"] += 1
        else:
            chosen.append((pair, better, worse))
    counts["rows"] = len(chosen)
    plain = all(len(pair.turns) == 1 and pair.turns[0].role == "user" for pair, _, _ in chosen)
    rows = []
    for pair, better, worse in chosen:
        asked = {"prompt": pair.prompt} if plain else {"messages": [turn.as_dict() for turn in pair.turns]}
        rows.append({**asked, "chosen": better, "rejected": worse, "row": pair.row})
    return rows, counts
