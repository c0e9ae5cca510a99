"""`validate`, `test`, `predict` and `evaluate`: a model on held-out rows, without training."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_ft.config import TrainingConfig
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline
from lightning_ft.data.split import SPLITS
from lightning_ft.decoding import Sampling
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import RESULTS, Evaluation, score_examples
from lightning_ft.loading import Loaded, load
from lightning_ft.registry import registry
from lightning_ft.run.choices import choose
from lightning_ft.run.folder import check_writable
from lightning_ft.run.quiet import say
from lightning_ft.run.verdict import names_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.data.pipeline import Prepared
    from lightning_ft.data.split import Split


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found."""

    metrics: dict[str, float]
    folder: Path
    """Where results.json and predictions.jsonl lie."""


def evaluate_split(config: TrainingConfig, split: Split, *, generate: bool) -> EvaluationResult:
    """The model of `config` on one split of its data.

    Raises:
        UsageError: the data have no rows in that split.
    """
    loaded, prepared, encoder = _prepare(config)
    if not len(prepared.tables[split]):
        raise UsageError(
            f"Expected rows in the {split} split, got none; look at --split, or name files with --{split[:4]}_data."
        )
    rows = [(split, i) for i in range(len(prepared.tables[split]))]
    return _score(config, loaded, prepared, encoder, rows, generate=generate)


def evaluate_files(
    model: str,
    data: Sequence[str],
    *,
    metrics: Sequence[str] | None,
    task: Any,
    output: str | None,
    max_rows: int | None,
    **options: Any,
) -> EvaluationResult:
    """The model on all rows of some files, or on a seeded sample of them."""
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"Expected --max_rows to be at least 1; got {max_rows}.")
    sampling_names = {f.name for f in dataclasses.fields(Sampling)} - {"max_new_tokens", "seed"}
    sampling = {name: options.pop(name) for name in list(options) if name in sampling_names}
    named = None if metrics is None else list(metrics)
    values = {"model": model, "data": list(data), "task": task, "output": output, "metrics": named, **options}
    config = TrainingConfig.from_dict(values)
    config.test_data, config.data = config.data, []  # every row is held out, whatever its split column says
    loaded, prepared, encoder = _prepare(config)
    rows: list[tuple[Split, int]] = [(split, i) for split in SPLITS for i in range(len(prepared.tables[split]))]
    if not rows:
        raise DataError(f"{', '.join(data)}: expected at least one row with an answer to score, got none.")
    if max_rows is not None and max_rows < len(rows):
        chosen = np.random.default_rng(config.seed).permutation(len(rows))[:max_rows]
        rows = [rows[i] for i in sorted(chosen.tolist())]
    return _score(config, loaded, prepared, encoder, rows, generate=True, **sampling)


def _prepare(config: TrainingConfig) -> tuple[Loaded, Prepared, Encoder]:
    """The model and the data as training would have encoded them."""
    hub: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if config.output is not None:
        check_writable(Path(config.output))
        if (Path(config.output) / RESULTS).exists():
            raise UsageError(
                f"Expected --output to be a new folder, got '{config.output}', which holds an evaluation; name another."
            )
    choices = choose(config, registry())
    loaded = load(config.model, template=config.template, **hub)
    limit = config.max_length or min(2048, _positions(loaded))
    encoder = Encoder(loaded.tokenizer, loaded.template, limit)
    prepared = Pipeline(config, registry(), encoder, choices.task, choices.objective.examples, say).prepare()
    return loaded, prepared, encoder


def _positions(loaded: Loaded) -> int:
    return int(getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 2048)


def _score(
    config: TrainingConfig,
    loaded: Loaded,
    prepared: Prepared,
    encoder: Encoder,
    rows: Sequence[tuple[Split, int]],
    *,
    generate: bool,
    **sampling: Any,
) -> EvaluationResult:
    names = names_for(prepared.task, config.metrics)
    metrics = [registry().metrics[name].cls() for name in names]
    if not generate and config.metrics is None:
        metrics = [metric for metric in metrics if metric.reads == "tokens"]
    examples = [prepared.task.format(prepared.tables[split].values(i)) for split, i in rows]
    ids = [prepared.tables[split][i].row for split, i in rows]
    scored = score_examples(
        loaded.model, encoder, loaded.template, loaded.tokenizer, examples, ids,
        metrics=metrics, sampling=Sampling(max_new_tokens=config.max_new_tokens, seed=config.seed, **sampling),
        generate=generate or config.metrics is not None, progress=sys.stderr.isatty(),
    )  # fmt: skip
    evaluation = Evaluation.of(metrics, scored)
    folder = _free_folder(config)
    evaluation.write(folder)
    return EvaluationResult(dict(evaluation.metrics), folder)


def _free_folder(config: TrainingConfig) -> Path:
    """`--output`, else the first free `eval_<n>` in the run folder or under runs/."""
    if config.output is not None:
        return Path(config.output)
    parent = Path(config.model) if (Path(config.model) / "run.json").is_file() else Path("runs")
    n = 1
    while (parent / f"eval_{n}").exists():
        n += 1
    return parent / f"eval_{n}"
