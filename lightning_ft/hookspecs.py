"""The plugin API, whole.

A plugin is a module with any of these functions, decorated with `hookimpl` and found by an entry point in the group
`lightning_ft`. The hooks that begin with `register_` return iterables of classes, never of instances. Of the others the first
plugin that has an answer is asked no further: None says that it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim import Optimizer

    from lightning_ft.backbone import Backbone, BackboneSpec
    from lightning_ft.loading import Loaded
    from lightning_ft.method import Method
    from lightning_ft.metric import Metric
    from lightning_ft.objective import Objective
    from lightning_ft.task import Task
    from lightning_ft.types import Benchmarked

hookspec = pluggy.HookspecMarker("lightning_ft")
hookimpl = pluggy.HookimplMarker("lightning_ft")
"""Marks a plugin's hook functions."""


@hookspec
def register_methods() -> Iterable[type[Method]]:
    """Return fine-tuning methods."""


@hookspec
def register_objectives() -> Iterable[type[Objective]]:
    """Return training objectives."""


@hookspec
def register_tasks() -> Iterable[type[Task]]:
    """Return tasks."""


@hookspec
def register_metrics() -> Iterable[type[Metric]]:
    """Return metrics."""


@hookspec
def register_optimizers() -> Iterable[type[Optimizer]]:
    """Return optimisers; the class's name is what users type.

    Each takes groups of parameters: matrices of embeddings and of the output layer come in a group with `embedding: True`.
    """


@hookspec(firstresult=True)
def find_alike(prompts: Sequence[str]) -> Sequence[tuple[int, int]] | None:
    """Return the pairs of prompts that are nearly the same, as their numbers, or None: `fit` keeps their rows in one split."""


@hookspec(firstresult=True)
def load_backbone(spec: BackboneSpec) -> Backbone | None:
    """Return the model and tokenizer that `spec` describes, or None to let the next plugin try."""


@hookspec(firstresult=True)
def run_harness(
    loading: Callable[[], Loaded],
    tasks: Sequence[str],
    num_fewshot: int | None,
    limit: float | None,
    max_length: int | None,
    apply_chat_template: bool,
) -> Benchmarked | None:
    """Return what the model does on `evaluate --harness TASKS`, or None to let the next plugin try.

    Call `loading` after the tasks were checked. `limit` is a number of documents, or below 1 a share of them.
    """
