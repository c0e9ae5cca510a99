"""Tasks of lm-evaluation-harness for `lightning-ft evaluate --harness`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_ft.loading import Loaded
    from lightning_ft.types import Benchmarked


@hookimpl
def run_harness(
    loading: Callable[[], Loaded],
    tasks: Sequence[str],
    num_fewshot: int | None,
    limit: float | None,
    max_length: int | None,
    apply_chat_template: bool,
) -> Benchmarked:
    """The numbers of lm-evaluation-harness."""
    from lightning_ft_harness.runner import run

    return run(
        loading, tasks, num_fewshot=num_fewshot, limit=limit, max_length=max_length, apply_chat_template=apply_chat_template
    )
