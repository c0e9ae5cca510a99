"""`validate`, `test`, `predict` and `evaluate`: a model on held-out rows, without training."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_ft import layout
from lightning_ft.backbone import positions_of, taken_positions
from lightning_ft.config import TrainingConfig
from lightning_ft.data.pipeline import Pipeline
from lightning_ft.data.split import FLAGS, SPLITS
from lightning_ft.decoding import Sampling
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import RESULTS, Evaluation, check_group, readable
from lightning_ft.loading import Loaded, load, locate
from lightning_ft.quantization import count_parameters
from lightning_ft.registry import registry
from lightning_ft.run.choices import choose
from lightning_ft.run.folder import check_writable, new_folder, versions
from lightning_ft.run.hardware import peak_memory
from lightning_ft.run.inherited import divided_otherwise, reads_of, trained_on
from lightning_ft.run.quiet import say, silent
from lightning_ft.run.team import Team
from lightning_ft.run.texts import Texts
from lightning_ft.run.verdict import allowed_answers, names_for
from lightning_ft.scoring import Costs, check_examples, score_examples
from lightning_ft.types import Preference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.pipeline import Prepared
    from lightning_ft.data.split import Split
    from lightning_ft.types import Example

KINDS = {
    "text": "answers that the model generated to conversations",
    "candidates": "likelihoods of a fixed set of answers",
    "pair": "likelihoods of a better and of a worse answer",
    "tokens": "likelihoods of given answers",
}
"""What metrics read, in words."""
DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number format of the weights by `precision`; None: as they are stored."""


def evaluate_split(config: TrainingConfig, split: Split, *, generate: bool) -> Evaluation:
    """The model of `config` on one split of its data.

    Raises:
        UsageError: the data have no rows in that split.
    """
    ready = _prepare(config)
    if not len(ready.prepared.tables[split]):
        raise UsageError(f"Expected rows in the {split} split, got none; look at --split, or name files with {FLAGS[split]}.")
    own_files = config.test_data if split == "test" else config.val_data
    again = divided_otherwise(config.model, ready.prepared.hashes, ready.prepared.division)
    if again and not own_files and ready.team.main:
        say(
            f"data: the rows are split otherwise than in the run of '{config.model}' (by another --seed or --split, task, "
            "plugin or version), so it may have trained on some of these"
        )
    rows = [(split, i) for i in range(len(ready.prepared.tables[split]))]
    return _score(ready, rows, generate=generate, always=generate)


def evaluate_files(
    model: str,
    data: Sequence[str],
    *,
    metrics: Sequence[str] | None,
    task: Any,
    output: str | None,
    max_rows: int | None,
    by: str | None = None,
    **options: Any,
) -> Evaluation:
    """The model on all rows of some files, or on a seeded sample of them."""
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"Expected --max_rows to be at least 1; got {max_rows}.")
    sampling_names = {f.name for f in dataclasses.fields(Sampling)} - {"max_new_tokens", "seed"}
    sampling = {name: options.pop(name) for name in list(options) if name in sampling_names}
    named = None if metrics is None else list(metrics)
    values = {"model": model, "data": list(data), "task": task, "output": output, "metrics": named, "devices": 1, **options}
    inherits = ""
    if task in (None, "auto"):
        reads, inherits = reads_of([model], list(data), options.get("columns") or {})
        values |= reads
    config = TrainingConfig.from_dict(values)
    config.test_data, config.data = config.data, []  # every row is held out, whatever its split column says
    ready = _prepare(config, further=(Preference,))
    if inherits and ready.team.main:
        say(f"task: {inherits}")
    seen = trained_on(model, ready.prepared.hashes)
    if seen and ready.team.main:
        say(f"data: the run trained on rows of {', '.join(seen)}, so these numbers are not of held-out rows alone")
    tables = ready.prepared.tables
    rows: list[tuple[Split, int]] = [(split, i) for split in SPLITS for i in range(len(tables[split]))]
    if not rows:
        raise DataError(f"{', '.join(data)}: expected at least one row with an answer to score, got none.")
    if max_rows is not None and max_rows < len(rows):
        chosen = np.random.default_rng(config.seed).permutation(len(rows))[:max_rows]
        rows = [rows[i] for i in sorted(chosen.tolist())]
    return _score(ready, rows, generate=True, by=by, **sampling)


@dataclass(frozen=True)
class _Ready:
    """What an evaluation begins with."""

    config: TrainingConfig
    team: Team
    loaded: Loaded
    prepared: Prepared
    encoder: Encoder


def _prepare(config: TrainingConfig, further: tuple[type[Example], ...] = ()) -> _Ready:
    """The model and the data as training would have encoded them, on every process.

    Args:
        config: The options.
        further: Example types that are scored where no task makes of the rows what the objective trains on.
    """
    team = Team.of(config)
    check_output(config.output, RESULTS)
    choices = choose(config, registry())
    loaded = load(
        config.model, dtype=DTYPES[config.precision], device=team.device, template=config.template, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    positions = positions_of(loaded.model.config, taken_positions(loaded.model))
    encoder = Texts.of(loaded.tokenizer, config.template, config.max_length, positions).encoder
    told = say if team.main else silent
    kinds = choices.objective.examples
    prepared = Pipeline(config, registry(), encoder, choices.task, kinds, told, further).prepare()
    return _Ready(config, team, loaded, prepared, encoder)


def _score(
    ready: _Ready, rows: Sequence[tuple[Split, int]], *, generate: bool, always: bool = False, by: str | None = None,
    **sampling: Any,
) -> Evaluation:  # fmt: skip
    config, prepared, loaded, team = ready.config, ready.prepared, ready.loaded, ready.team
    names = names_for(prepared.task, config.metrics)
    metrics = [registry().metrics[name].cls() for name in names]
    if not generate and config.metrics is None:
        metrics = [metric for metric in metrics if metric.reads in ("tokens", "pair")]
    chosen = Sampling(max_new_tokens=config.max_new_tokens, seed=config.seed, **sampling)
    examples = [prepared.task.format(prepared.tables[split].values(i)) for split, i in rows]
    ids = [prepared.tables[split][i].row for split, i in rows]
    by = by or _task_column(examples)
    if by is not None:
        check_group(by, examples)
    costs, allowed = Costs(), allowed_answers(prepared, examples, metrics)
    asks = {"tokens", "candidates", "pair"} | ({"text"} if generate or config.metrics is not None else set())
    check_examples(metrics, examples, ids, allowed, asks)  # of all processes
    mine = score_examples(
        loaded.model, ready.encoder, loaded.template, loaded.tokenizer, team.share(examples), team.share(ids),
        metrics=metrics, sampling=chosen, generate=generate or config.metrics is not None, always=always,
        candidates=allowed, numbers=team.share(range(len(ids))),
        progress=team.main and sys.stderr.isatty(), costs=costs,
    )  # fmt: skip
    shares = team.gather((mine, costs))
    if shares is None:  # the first process writes
        return Evaluation({}, [], {})
    scored = team.joined([rows for rows, _ in shares])
    assert [row.row for row in scored] == ids, "every row must have been scored once, in the order of the data"
    details = {
        "model": config.model,
        "task": prepared.task.name,
        "by": by,
        "template": loaded.template.name,
        "sampling": dataclasses.asdict(chosen),
        "data": dict(prepared.hashes),
        "ledger": prepared.ledger.as_dict()["total"],
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "processes": team.size,
        "cost": _cost(config, loaded, [costs for _, costs in shares]),
        "versions": versions(),
    }
    evaluation = Evaluation.of(metrics, scored, details, by=by)
    evaluation.details["left_out"] = [metric.name for metric in metrics if metric.name not in evaluation.metrics]
    folder = free_folder(config.model, config.output)
    evaluation.write(folder)
    _refuse_empty(config, evaluation)
    return evaluation


def _refuse_empty(config: TrainingConfig, evaluation: Evaluation) -> None:
    """Say no where a metric that the user named counts no row; what was measured is on disk by then.

    Raises:
        UsageError: it is so.
    """
    for name in config.metrics or ():
        metric = registry().metrics[name].cls()
        if metric.name in evaluation.metrics:
            continue
        seen = sum(readable(metric, row) for row in evaluation.rows)
        why = f"it reads {KINDS[metric.reads]}" if not seen else f"{seen} have what it reads, and it applies to none of them"
        raise UsageError(
            f"Expected rows that count for metric {metric.name}, got none among {len(evaluation.rows)}: {why}; leave it out, "
            f"or name another --task. Everything else is in {evaluation.folder}."
        )


def _task_column(examples: Sequence[Example]) -> str | None:
    """The column by which a file of several tasks parts its rows."""
    found = {str(example.meta["task"]) for example in examples if isinstance(example.meta.get("task"), str)}
    return "task" if len(found) > 1 else None


def _cost(config: TrainingConfig, loaded: Loaded, costs: Sequence[Costs]) -> dict[str, Any]:
    """What the evaluation took: seconds of the slowest process, tokens of all, bytes of memory and of the model's files."""
    place = locate(config.model, revision=config.revision)
    folders = [Path(name) for name in (place.base, place.adapter) if name is not None and Path(name).is_dir()]
    return {
        "likelihood_seconds": max(one.likelihood_seconds for one in costs),
        "likelihood_tokens": sum(one.likelihood_tokens for one in costs),
        "generation_seconds": max(one.generation_seconds for one in costs),
        "generated_tokens": sum(one.generated_tokens for one in costs),
        "peak_memory": peak_memory(),
        "parameters": count_parameters(loaded.model.parameters()),
        "bytes": sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")),
    }


def check_output(output: str | None, results: str) -> None:
    """Whether the folder that was named for an evaluation can be written and holds no file `results` of another one.

    Raises:
        UsageError: it cannot, or does.
    """
    if output is None:
        return
    check_writable(Path(output))
    if (Path(output) / results).exists():
        raise UsageError(f"Expected --output to be a new folder, got '{output}', which holds an evaluation; name another.")


def free_folder(model: str, output: str | None) -> Path:
    """`--output`, else a new `eval_<n>` in the run folder or under runs/."""
    if output is not None:
        return Path(output)
    return new_folder(Path(model) if (Path(model) / layout.RECORD).is_file() else Path("runs"), "eval")
