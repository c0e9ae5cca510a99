"""Tasks and their metrics as a plugin of lightning-ft. Hooks only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_ft.metric import Metric
    from lightning_ft.task import Task


@hookimpl
def register_tasks() -> Iterable[type[Task]]:
    """Instructions with answers, and conversations."""
    from lightning_ft_tasks.chat import Chat
    from lightning_ft_tasks.instruct import Instruct

    return [Instruct, Chat]


@hookimpl
def register_metrics() -> Iterable[type[Metric]]:
    """Exact match, token F1 and ROUGE."""
    from lightning_ft_tasks.metrics import ExactMatch, Rouge1, Rouge2, RougeL, RougeLsum, TokenF1

    return [ExactMatch, TokenF1, Rouge1, Rouge2, RougeL, RougeLsum]
