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
    """Instructions, conversations, trees, reasoning, code, comparisons, classes, and files in a text template."""
    from lightning_ft_tasks.chat import Chat
    from lightning_ft_tasks.classify import Classify
    from lightning_ft_tasks.code import Code
    from lightning_ft_tasks.instruct import Instruct
    from lightning_ft_tasks.preference import PreferencePairs, UnpairedAnswers
    from lightning_ft_tasks.reasoning import Reasoning
    from lightning_ft_tasks.self_instruct import SelfInstruct
    from lightning_ft_tasks.templated import Templated
    from lightning_ft_tasks.tree import Tree

    return [Instruct, SelfInstruct, Reasoning, Chat, Tree, Code, PreferencePairs, UnpairedAnswers, Classify, Templated]


@hookimpl
def register_metrics() -> Iterable[type[Metric]]:
    """Exact match, token F1 and ROUGE."""
    from lightning_ft_tasks.metrics import ExactMatch, Rouge1, Rouge2, RougeL, RougeLsum, TokenF1

    return [ExactMatch, TokenF1, Rouge1, Rouge2, RougeL, RougeLsum]
