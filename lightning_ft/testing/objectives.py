"""The contract of objectives as clauses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_ft.testing.clauses import options_documented, require, run_clauses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from lightning_ft.objective import Objective
    from lightning_ft.types import Batch, LossOutput, LossTerm


def text_batch(rows: int = 4, length: int = 12) -> Batch:
    """A padded micro-batch of rows of different lengths, the first three tokens of each a prompt."""
    import torch

    from lightning_ft.types import IGNORE_INDEX, Batch

    lengths = [length - i for i in range(rows)]
    ids = torch.randint(32, 200, (rows, length), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[:, :3] = IGNORE_INDEX
    for i, n in enumerate(lengths):
        ids[i, n:], labels[i, n:] = 256, IGNORE_INDEX
    positions = torch.arange(length).repeat(rows, 1)
    names = tuple(f"rows.jsonl:{i + 1}" for i in range(rows))
    return Batch(ids, labels, positions, None, names, lengths=tuple(lengths))


def halves(batch: Batch) -> list[Batch]:
    """A padded batch cut into two by rows, of which those that belong together stay so."""
    middle = len(batch.rows) // batch.together // 2 * batch.together
    return [
        type(batch)(
            batch.input_ids[s], batch.labels[s], batch.position_ids[s], None, batch.rows[s],
            None if batch.weights is None else batch.weights[s], batch.lengths[s], batch.together,
            None if batch.reference is None else batch.reference[s],
        )
        for s in (slice(None, middle), slice(middle, None))
    ]  # fmt: skip


def objective_options(objective: Objective, model: nn.Module, whole: Batch, parts: Sequence[Batch]) -> None:
    """Its options are a frozen dataclass with documented fields; it says which examples it eats."""
    options_documented(type(objective))
    require("options", f"objective {objective.name}", bool(objective.examples), "`examples` is empty")


def objective_gradient(objective: Objective, model: nn.Module, whole: Batch, parts: Sequence[Batch]) -> None:
    """It returns at least one finite term with a gradient that reaches the model."""
    subject = f"objective {objective.name}"
    output = _output(objective, model, whole)
    require("gradient", subject, bool(output.terms), "it returned no term")
    model.zero_grad()
    total = sum(term.weight * term.sum for term in output.terms.values())
    require("gradient", subject, getattr(total, "requires_grad", False), "its sum has no gradient")
    total.backward()  # type: ignore[union-attr]  # a tensor: there is a term
    reached = any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    require("gradient", subject, reached, "no parameter of the model gets a gradient")
    for name, term in output.logs.items():
        require("gradient", subject, not term.sum.requires_grad, f"log `{name}` carries a gradient; detach it")


def objective_sums(objective: Objective, model: nn.Module, whole: Batch, parts: Sequence[Batch]) -> None:
    """Terms are sums, not means: those of two halves of a batch, and their counts, add up to those of the whole."""
    subject = f"objective {objective.name}"
    all_of_it = _output(objective, model, whole)
    pieces = [_output(objective, model, part) for part in parts]
    for kind in ("terms", "logs"):
        for name, term in getattr(all_of_it, kind).items():
            for quantity in ("sum", "count"):
                expected = _number(term, quantity)
                got = sum(_number(getattr(piece, kind)[name], quantity) for piece in pieces)
                equal = math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-5)
                message = f"the {quantity} of `{name}` is {expected:.6g} for the batch, but {got:.6g} for its halves together"
                require("sums", subject, equal, message)


def objective_reports(objective: Objective, model: nn.Module, whole: Batch, parts: Sequence[Batch]) -> None:
    """It logs what it says that a validation measures; of rows that count nowhere it returns the same names, with count 0."""
    from lightning_ft.data.collate import muted

    subject, output = f"objective {objective.name}", _output(objective, model, whole)
    unknown = objective.measures.keys() - output.logs.keys()
    require("reports", subject, not unknown, f"`measures` names {', '.join(sorted(unknown))}, which it does not log")
    silent = _output(objective, model, muted(replace(whole, weights=None)))
    for kind in ("terms", "logs"):
        names, kept = getattr(output, kind), getattr(silent, kind)
        require("reports", subject, names.keys() == kept.keys(), f"its {kind} of a muted batch are others: {', '.join(kept)}")
        for name, term in kept.items():
            zero = _number(term, "sum") == 0 and _number(term, "count") == 0
            require("reports", subject, zero, f"`{name}` of a muted batch (`lengths` is empty, weights are 0) is not 0 of 0")


def objective_smoothing(objective: Objective, model: nn.Module, whole: Batch, parts: Sequence[Batch]) -> None:
    """Where its call takes `label_smoothing`, that changes the sums and no count."""
    if not objective.smooths():
        return
    subject, batch = f"objective {objective.name}", objective.prepare(model, whole)
    options: dict[str, float] = {"label_smoothing": 0.3}
    plain, smoothed = objective(model, batch).terms, objective(model, batch, **options).terms
    counts = [{name: _number(term, "count") for name, term in terms.items()} for terms in (plain, smoothed)]
    require("smoothing", subject, counts[0] == counts[1], f"counts are {counts[0]}, and {counts[1]} with it")
    changed = any(not math.isclose(_number(plain[name], "sum"), _number(smoothed[name], "sum")) for name in plain)
    require("smoothing", subject, changed, "it changes no term; leave the keyword out")


def _number(term: LossTerm, quantity: str) -> float:
    value = getattr(term, quantity)
    return float(value.detach() if hasattr(value, "detach") else value)


def _output(objective: Objective, model: nn.Module, batch: Batch) -> LossOutput:
    return objective(model, objective.prepare(model, batch))


OBJECTIVE_CLAUSES: dict[str, Callable[[Objective, nn.Module, Batch, Sequence[Batch]], None]] = {
    "options": objective_options,
    "gradient": objective_gradient,
    "sums": objective_sums,
    "reports": objective_reports,
    "smoothing": objective_smoothing,
}


def check_objective(
    objective: Objective | type[Objective],
    *,
    model: nn.Module | None = None,
    whole: Batch | None = None,
    parts: Sequence[Batch] | None = None,
) -> None:
    """Every clause of the objective contract.

    Args:
        objective: an instance, or a class that is taken with its defaults.
        model: the model it is run on; None: a tiny Llama, everything trainable.
        whole: a micro-batch of the kind that the objective eats; None: four padded rows of text.
        parts: the same rows in several micro-batches; None: `whole` cut in two.

    Raises:
        AssertionError: a clause is broken; the message names it.
    """
    from lightning_ft.testing.models import tiny_llama

    made = objective() if isinstance(objective, type) else objective
    batch = whole or text_batch()
    run_clauses(OBJECTIVE_CLAUSES, made, tiny_llama() if model is None else model, batch, parts or halves(batch))
