"""The hooks; classes are imported when their kind is first asked for."""

from __future__ import annotations

from lightning_ft import hookimpl


@hookimpl
def register_methods() -> list[type]:
    """A method that trains the final norm."""
    from .method import LastNorm

    return [LastNorm]


@hookimpl
def register_tasks() -> list[type]:
    """Fruits and their colours."""
    from .task import Fruit

    return [Fruit]


@hookimpl
def register_metrics() -> list[type]:
    """Whether an answer names the colour."""
    from .task import ColourNamed

    return [ColourNamed]
