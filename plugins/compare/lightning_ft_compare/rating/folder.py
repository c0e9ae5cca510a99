"""The folder of a rating: what was asked for, the evaluations, and every choice of a rater as soon as it is made."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_ft.atomic import append_lines, write_json
from lightning_ft.errors import LightningFTError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SETUP, RATINGS, RESULT, PREFERENCES = "setup.json", "ratings.jsonl", "rating.json", "preferences.jsonl"
FORMAT_VERSION = 1
Choice = Literal["left", "right", "tie", "both_bad", "same", "skip"]
"""`same`: the answers are one text, which nobody is asked about."""
ASKED: tuple[Choice, ...] = ("left", "right", "tie", "both_bad")
"""What a rater can say."""


@dataclass(frozen=True)
class Rating:
    """What a rater said of two answers by one criterion."""

    rater: str
    row: str
    key: str
    """Of the pair of answers."""
    criterion: str
    choice: Choice
    left: str
    """The letter of the model whose answer stood on the left."""
    time: str

    @property
    def winner(self) -> str | None:
        """The letter of the better model; None where there is none."""
        if self.choice not in ("left", "right"):
            return None
        return self.left if self.choice == "left" else "AB".replace(self.left, "")


class Ratings:
    """The ratings of a folder, each on disk when it is made; a later one of the same rater, pair and criterion replaces it.

    Args:
        path: The file, which may be there from before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str, str], Rating] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
            self._read(line)

    def of(self, rater: str, key: str, criterion: str) -> Choice | None:
        """What was said."""
        found = self._known.get((rater, key, criterion))
        return found.choice if found else None

    def all(self) -> list[Rating]:
        """Those that count."""
        return list(self._known.values())

    def add(self, rater: str, row: str, key: str, criterion: str, choice: Choice, left: str) -> None:
        """Note a rating.

        Raises:
            LightningFTError: the disk takes no more.
        """
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rating = Rating(rater, row, key, criterion, choice, left, time)
        try:
            append_lines(self.path, json.dumps(asdict(rating), ensure_ascii=True) + "\n")
        except OSError as error:
            raise LightningFTError(
                f"Could not write '{self.path}': {error.strerror or error}; free some space and type the same again."
            ) from None
        self._known[rater, key, criterion] = rating

    def _read(self, line: str) -> None:
        try:
            rating = Rating(**json.loads(line))
        except (ValueError, TypeError):
            return  # a line that a kill cut off: it is asked again
        if rating.choice in get_args(Choice) and rating.left in ("A", "B"):
            self._known[rating.rater, rating.key, rating.criterion] = rating


def begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note what was asked for, or see that it is what the rating in the folder was begun with.

    Args:
        folder: Of the rating, held by this process.
        asked: `models`, `criteria`, `seed` and further options, as JSON has them.

    Raises:
        UsageError: it is another rating's, or no rating's and not empty.
    """
    path = folder / SETUP
    others = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {SETUP}
    before = _read_setup(path)
    if before is None or not others:  # nothing has come of it, as where a file was named wrongly
        if others:
            raise UsageError(f"Expected --output to be a new folder or that of a rating, got '{folder}'; name another.")
        write_json(path, {"version": FORMAT_VERSION, "asked": dict(asked)})
        return
    for name, value in asked.items():
        if before["asked"].get(name) == value:
            continue
        if name in ("models", "predictions", "data"):
            raise UsageError(f"Expected --output to hold ratings of these answers, but '{folder}' has others; name another.")
        raise UsageError(
            f"Expected --{name} as '{folder}' was begun with ({_shown(before['asked'].get(name))}), got {_shown(value)}; type "
            "the same again, or name another --output."
        )


def check_pairs(folder: Path, digest: str) -> None:
    """Note which pairs are rated, or see that they are those from before.

    Raises:
        UsageError: they are others: an evaluation was made anew.
    """
    setup = _read_setup(folder / SETUP)
    assert setup is not None, "begin() comes first"
    if setup.setdefault("pairs", digest) != digest:
        raise UsageError(f"Expected the answers that '{folder}' was begun with, got others; name another --output.")
    write_json(folder / SETUP, setup)


def _read_setup(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] == FORMAT_VERSION and isinstance(values["asked"], dict):
            return dict(values)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"Expected '{path}' to be what a rating of version {FORMAT_VERSION} wrote; name another --output.")


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, dict) else "none" if value is None else str(value)
