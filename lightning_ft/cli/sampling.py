"""The flags that say how tokens are chosen, shared by `generate`, `chat` and `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

NAMES = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the flags; those that are not given stay at the defaults of `lightning_ft.generation.Sampling`."""
    group = parser.add_argument_group("sampling (greedy unless a temperature is given)")
    group.add_argument("--max_new_tokens", type=int, metavar="N", help="longest answer in tokens")
    group.add_argument("--temperature", type=float, metavar="T", help="0: always the most likely token")
    group.add_argument(
        "--top_p", type=float, metavar="P", help="choose among the most likely tokens that have this share together"
    )
    group.add_argument("--top_k", type=int, metavar="K", help="choose among this many tokens; 0: all")
    group.add_argument(
        "--repetition_penalty", type=float, metavar="R", help="divide the scores of tokens that were used; 1: off"
    )
    group.add_argument("--seed", type=int, metavar="S", help="decides the choices")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text (repeatable)")


def given_sampling(arguments: Any) -> dict[str, Any]:
    """The flags that were given, as arguments of `Sampling`."""
    given = {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name) is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    return given
