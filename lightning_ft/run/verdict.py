"""Base and tuned model on the same held-out rows: the evidence that a run leaves."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from lightning_ft.decoding import Sampling
from lightning_ft.evaluation import Evaluation
from lightning_ft.scoring import score_examples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.run.session import Session
    from lightning_ft.task import Task

ALWAYS = ("loss", "perplexity", "token_accuracy")
"""Metrics of every verdict; the task's come on top."""


def names_for(task: Task, named: Sequence[str] | None) -> tuple[str, ...]:
    """Metrics of an evaluation: the likelihoods, then those that the user named or the task brings."""
    own = named if named is not None else task.metrics or ("bits_per_byte",)
    return tuple(dict.fromkeys([*ALWAYS, *own]))


def evaluate_both(session: Session, rows: int) -> tuple[list[Any], Evaluation, Evaluation]:
    """The metrics, and base and tuned model over the first `rows` test rows of a seeded order."""
    import numpy as np

    table = session.prepared.tables["test"]
    chosen = sorted(np.random.default_rng(session.config.seed).permutation(len(table))[:rows].tolist())
    examples = session.prepared.examples("test", chosen)
    ids = [table[i].row for i in chosen]
    names = names_for(session.prepared.task, session.config.metrics)

    def evaluate(model: Any) -> Evaluation:
        scored = score_examples(
            model, session.encoder, session.template, session.tokenizer, examples, ids, metrics=_metrics(session, names),
            sampling=Sampling(max_new_tokens=session.config.max_new_tokens), progress=sys.stderr.isatty(),
        )  # fmt: skip
        return Evaluation.of(_metrics(session, names), scored)

    with _base(session) as base:
        before = evaluate(base)
    return _metrics(session, names), before, evaluate(session.tuned)


def _metrics(session: Session, names: tuple[str, ...]) -> list[Any]:
    return [session.registry.metrics[name].cls() for name in names]


@contextlib.contextmanager
def _base(session: Session) -> Iterator[Any]:
    """The model before training: the adapter switched off where that is what training began with, else loaded again."""
    with contextlib.ExitStack() as stack:
        model = None
        if session.location.adapter is None:
            with contextlib.suppress(NotImplementedError):
                model = stack.enter_context(session.choices.method.reference(session.tuned))
        if model is None:
            from lightning_ft.loading import load

            model = load(session.config.model, dtype=session.spec.dtype, device=str(session.world.device)).model
        yield model
