"""Base and tuned model on the same held-out rows, and what the run's lines show: the evidence that a run leaves."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_ft.bootstrap import Verdict, compare
from lightning_ft.config import TrainingConfig
from lightning_ft.data.pipeline import Pipeline, Prepared
from lightning_ft.data.split import SPLITS
from lightning_ft.decoding import Sampling
from lightning_ft.errors import UsageError
from lightning_ft.evaluation import Evaluation, as_metrics
from lightning_ft.objective import Objective
from lightning_ft.run.quiet import silent
from lightning_ft.scoring import NO_CANDIDATES, check_examples, score_examples
from lightning_ft.signs import lines_of, signs
from lightning_ft.types import Preference
from lightning_ft.vocabulary import grow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_ft.bootstrap import Comparison
    from lightning_ft.metric import Metric
    from lightning_ft.run.session import Session
    from lightning_ft.task import Task
    from lightning_ft.types import Example

ALWAYS = ("loss", "perplexity", "token_accuracy")
"""Metrics of every verdict but one on pairs; the task's come on top."""
KEEPS = ("loss", "token_accuracy")
"""Metrics of the retention set."""
GENERAL = Path(__file__).parents[1] / "assets" / "data" / "general.jsonl"
"""The retention set that is shipped."""
KNOWN_FROM = 10_000
"""Rows of each held-out split in which the classes are looked for that a task allows."""


def names_for(task: Task, named: Sequence[str] | None) -> tuple[str, ...]:
    """Metrics of an evaluation: the likelihoods, then those that the user named or the task brings.

    Of pairs only the latter: training on which answer is the better one may rightly lower the likelihood of both.
    """
    if of_pairs(task):
        return tuple(dict.fromkeys(task.metrics if named is None else named))
    own = named if named is not None else task.metrics or ("bits_per_byte",)
    return tuple(dict.fromkeys([*ALWAYS, *own]))


def of_pairs(task: Task) -> bool:
    """Whether all that a task makes are pairs of a better and a worse answer."""
    return all(issubclass(kind, Preference) for kind in task.kinds())


@dataclass(frozen=True)
class Rows:
    """Rows to be scored, and by what."""

    examples: list[Example]
    ids: list[str]
    """`file:line` of each."""
    metrics: tuple[str, ...]
    candidates: tuple[str, ...] = ()

    def score(self, session: Session, model: Any) -> Evaluation:
        """What a model does on them."""
        texts = session.texts
        scored = score_examples(
            model, texts.encoder, texts.template, texts.tokenizer, self.examples, self.ids, metrics=self.metrics,
            candidates=self.candidates, sampling=Sampling(max_new_tokens=session.config.max_new_tokens),
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        return Evaluation.of(self.metrics, scored)


@dataclass(frozen=True)
class HeldOut:
    """What a verdict is about; found before training, so that what is wrong with it is said before."""

    test: Rows
    retention: Rows | None

    def verdict(self, session: Session) -> Verdict:
        """Base against tuned, and the signs of trouble in the run's lines."""
        with base_of(session) as base:
            before = self.test.score(session, base)
            kept = self.retention.score(session, base) if self.retention else None
        found = compare(self.test.metrics, before, self.test.score(session, session.tuned))
        if self.retention and kept:
            found.retention = compare(KEEPS, kept, self.retention.score(session, session.tuned)).comparisons
        # The loss of training on pairs is no likelihood, so that of the better answers says nothing of its course.
        loss = None if of_pairs(session.prepared.task) else _loss(found.comparisons)
        found.signs = signs(lines_of(session.folder.metrics), loss, _loss(found.retention))
        return found


def _loss(found: Sequence[Comparison]) -> Comparison | None:
    return next((one for one in found if one.metric == "loss"), None)


def held_out(session: Session) -> HeldOut | None:
    """The first `verdict_rows` test rows of a seeded order, and the retention set; None where there is nothing to judge by.

    Raises:
        DataError: rows lack what a metric reads, or the retention file cannot be read.
    """
    prepared, config = session.prepared, session.config
    table = prepared.tables["test"]
    rows = min(config.verdict_rows, len(table))
    if not rows:
        return None
    chosen = sorted(np.random.default_rng(config.seed).permutation(len(table))[:rows].tolist())
    examples, names = prepared.examples("test", chosen), names_for(prepared.task, config.metrics)
    made = as_metrics(names)
    ids = [table[i].row for i in chosen]
    allowed = allowed_answers(prepared, examples, made)
    asked = check_examples(made, examples, ids, allowed, {"text", "candidates", "pair"})
    wanted = [metric.name for metric in made if metric.reads == "text" and config.metrics is not None]
    if wanted and not asked:
        raise UsageError(
            f"Expected --metrics to name some that test rows can have, got {', '.join(wanted)} of generated answers, and "
            "rows of which none is a conversation; leave them out, or name another --task."
        )
    test = Rows(examples, ids, names, allowed)
    return HeldOut(test, _retention(session))


def allowed_answers(prepared: Prepared, examples: Sequence[Example], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """All answers that the task allows, where a metric asks for them: as held-out rows show them, if the task does not say.

    Those that are not scored are looked at, too: a sample of few rows would make a choice among few classes of it.

    Raises:
        UsageError: a metric asks for them, and the task allows any text.
    """
    if all(metric.reads != "candidates" for metric in metrics):
        return ()
    others = [
        one
        for split in ("validation", "test")
        for one in prepared.examples(split, range(len(prepared.tables[split]))[:KNOWN_FROM])
    ]
    found = tuple(prepared.task.candidates([*others, *examples]))
    if not found:
        raise UsageError(NO_CANDIDATES)
    return found


def check_retention(config: TrainingConfig) -> None:
    """Refuse a retention set that is none.

    Raises:
        UsageError: it is neither a file nor one of the words.
    """
    if config.retention not in ("general", "none") and not Path(config.retention).is_file():
        raise UsageError(
            f"Expected --retention to be a file of rows, general or none; got '{config.retention}', which is no file."
        )


def _retention(session: Session) -> Rows | None:
    """General rows, encoded as the run's own are, whatever they are rows of and the run trains on."""
    config = session.config
    if config.retention == "none":
        return None
    name = str(GENERAL) if config.retention == "general" else config.retention
    own = TrainingConfig(model=config.model, data=[name], on_error=config.on_error)
    own.test_data, own.data = own.data, []
    own.max_lost = 1.0  # a long text that is cut is general text all the same
    prepared = Pipeline(own, session.registry, session.texts.encoder, None, Objective.examples, silent).prepare()
    places = [(split, i) for split in SPLITS for i in range(len(prepared.tables[split]))]
    examples = [prepared.task.format(prepared.tables[split].values(i)) for split, i in places]
    if not examples:
        raise UsageError(f"Expected --retention to be a file of rows with text; got '{name}', which has none.")
    return Rows(examples, [prepared.tables[split][i].row for split, i in places], KEEPS)


@contextlib.contextmanager
def base_of(session: Session) -> Iterator[Any]:
    """The model before training: the adapter switched off where that is what training began with, else loaded again."""
    with contextlib.ExitStack() as stack:
        model = None
        if session.location.adapter is None:
            with contextlib.suppress(NotImplementedError):
                model = stack.enter_context(session.choices.method.reference(session.tuned))
        if model is None:
            with torch.random.fork_rng(()):  # new weights are those that training began with
                torch.manual_seed(session.config.seed)
                beneath = session.choices.method.starts_upon if session.location.adapter is None else None
                loaded = session.load(beneath or session.config.model, from_scratch=session.config.from_scratch)
            model = loaded.model
            if session.new_tokens:
                grow(model, loaded.tokenizer, session.texts.tokenizer, session.new_tokens)
        yield model
