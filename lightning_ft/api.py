"""What Python users and all commands call."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft import layout
from lightning_ft.config import TrainingConfig, from_python
from lightning_ft.curves import read_lines
from lightning_ft.errors import RunInterruptedError, UsageError
from lightning_ft.loading import Loaded, load
from lightning_ft.run.signals import stoppable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

    from lightning_ft.bootstrap import Verdict
    from lightning_ft.data.split import Split
    from lightning_ft.evaluation import Evaluation
    from lightning_ft.types import Benchmarked

__all__ = ["Run", "TrainingConfig", "evaluate", "evaluate_tasks", "fit", "fit_config", "generate", "load", "run_stage"]


@dataclass
class Run:
    """A finished run."""

    folder: Path
    verdict: Verdict | None = None
    """Base against tuned on the test rows; None where there are none, or none were wanted."""
    _loaded: Loaded | None = field(default=None, repr=False)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole."""
        return read_lines(self.folder / layout.LOG)[0]

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says: versions, seeds, timings, how it ended."""
        found: dict[str, Any] = json.loads((self.folder / layout.RECORD).read_text(encoding="utf-8"))
        return found

    def generate(self, prompts: str | Sequence[str], **sampling: Any) -> Any:
        """Answers of the tuned model: a text for a text, a list for a list."""
        return _answers(self._model, prompts, **sampling)

    def _model(self) -> Loaded:
        if self._loaded is None:
            self._loaded = load(str(self.folder))
        return self._loaded


def fit(*, model: str | None = None, data: str | Path | Sequence[str | Path] | None = None, **options: Any) -> Run:
    """Fine-tune a model and compare it with its base.

    Args:
        model: Folder, hub id, run folder, adapter, or `embedded`. With `resume` and the name of a run, model, data and every
            option that is not given are the run's.
        data: Files, globs or folders.
        **options: Fields of `TrainingConfig`; `method`, `task`, `objective` and `optimizer` also take instances.

    Returns:
        The finished run: its folder, metrics, verdict, and `generate`.

    Raises:
        UsageError: wrong options or data. TrainingError: the run failed. CheckFailedError: a check said no.
    """
    if model is not None:
        options["model"] = model
    if data is not None:
        options["data"] = [str(data)] if isinstance(data, (str, Path)) else [str(name) for name in data]
    options = _with_those_of_the_run(options)
    return fit_config(TrainingConfig.from_dict(options), given=frozenset(options))


def _with_those_of_the_run(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, and the rest as the run has it that `resume` names.

    A method, task, objective or optimiser that is given stands for the whole of it.

    Raises:
        UsageError: the run had objects of Python among its Trainer arguments, which have to be given again.
    """
    from lightning_ft.run.folder import options_of
    from lightning_ft.run.resume import run_of

    if options.get("resume") in (None, "auto"):
        return options
    run, _ = run_of(str(options["resume"]))
    began = options_of(run)
    if "trainer" not in options and from_python(began.get("trainer")):
        raise UsageError(f"Expected trainer= as run '{run}' began with, whose Trainer arguments are objects; got none.")
    began.pop("trust_remote_code", None)
    return began | options


@stoppable()
def fit_config(
    config: TrainingConfig, *, given: frozenset[str] = frozenset(), cluster: ClusterEnvironment | None = None
) -> Run:
    """Fine-tune as `config` says.

    Args:
        config: The run's options.
        given: Options that the user set, which a task's defaults must not touch.
        cluster: How Lightning finds the other processes, for a launcher that gives torchrun's variables without its equal
            numbers of processes on all machines; None: as Lightning itself finds out.
    """
    from lightning_ft.run.session import Session

    session = Session(config, given, cluster)
    status = "failed"
    try:
        session.build()
        session.fit()
        session.finish()
        if not session.world.main:
            status = "finished"
            return Run(session.folder.path)
        verdict = session.verdict()
        session.report()
        status = "finished" if session.ended else "interrupted"
        return Run(session.folder.path, verdict, session.loaded())
    except (RunInterruptedError, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        session.close(status)


def run_stage(config: TrainingConfig, stage: str) -> dict[str, Any]:
    """`validate`, `test` or `predict`: the model on the split of that name (`predict`: test, with answers).

    Returns:
        The metrics, and `folder`: where results.json and predictions.jsonl lie.
    """
    from lightning_ft.run.stages import evaluate_split

    split: Split = "validation" if stage == "validate" else "test"
    result = evaluate_split(config, split, generate=stage == "predict")
    return {**result.metrics, "folder": None if result.folder is None else str(result.folder)}


def evaluate(
    model: str, data: str | Path | Sequence[str | Path], *, metrics: Sequence[str] | None = None, task: Any = "auto",
    output: str | None = None, max_rows: int | None = None, by: str | None = None, **options: Any,
) -> Evaluation:  # fmt: skip
    """Score a model on every row of some files.

    Args:
        model: Run folder, adapter, checkpoint, plain model, hub id, or `embedded`.
        data: Files, globs or folders; all rows count, whatever their split.
        metrics: Names; None: loss, perplexity, token accuracy and those of the task; of pairs the latter alone.
        task: What a row is; auto: as in the model's run where that reads the rows, else by their columns.
        output: Folder to write; None: `<run>/eval_<n>` for a run folder, else runs/eval_<n>.
        max_rows: Rows of a seeded sample; None: all.
        by: Column whose values part the rows into groups with values of their own; None: `task` where the data have several.
        **options: Fields of `TrainingConfig` (`template`, `max_length`, `devices` ...) and of `Sampling` (`temperature` ...).

    Returns:
        Metrics, rows, spreads and groups, and the folder that was written; empty on every process but the first.
    """
    from lightning_ft.run.stages import evaluate_files

    files = [str(data)] if isinstance(data, (str, Path)) else [str(name) for name in data]
    return evaluate_files(model, files, metrics=metrics, task=task, output=output, max_rows=max_rows, by=by, **options)


def evaluate_tasks(model: str, tasks: str | Sequence[str], **options: Any) -> tuple[Benchmarked, Path]:
    """Run the tasks of a benchmark that brings its own prompts and metrics, by a plugin that can.

    Args:
        model: As for `evaluate`.
        tasks: Names or files, as the plugin knows them.
        **options: `num_fewshot`, `limit` (documents of each task, below 1 a share), `max_length`, `apply_chat_template`,
            `precision`, `output`.

    Returns:
        The numbers and samples, and the folder that was written.
    """
    from lightning_ft.run.harness import evaluate_tasks

    return evaluate_tasks(model, [tasks] if isinstance(tasks, str) else list(tasks), **options)


def generate(model: str, prompts: str | Sequence[str], **sampling: Any) -> Any:
    """Answers to prompts, each taken as a user's turn by the model's template: a text for a text, a list for a list.

    Args:
        model: As for `evaluate`.
        prompts: One prompt or several.
        **sampling: Fields of `Sampling`: `max_new_tokens`, `temperature` ...
    """
    return _answers(lambda: load(model), prompts, **sampling)


def _answers(loading: Callable[[], Loaded], prompts: str | Sequence[str], **sampling: Any) -> Any:
    """Prompts and options are checked before the model is loaded."""
    from lightning_ft.decoding import Sampling
    from lightning_ft.generation import generate_texts
    from lightning_ft.types import Message

    single = isinstance(prompts, str)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError("Expected at least one prompt, and none of them empty; got an empty one.")
    try:
        chosen = Sampling(**sampling)
    except TypeError as error:
        raise UsageError(f"Expected options of Sampling (max_new_tokens, temperature ...): {error}.") from None
    loaded = loading()
    rendered = [loaded.template.prompt((Message("user", text),)) for text in texts]
    answers = generate_texts(loaded.model, loaded.tokenizer, rendered, chosen, stop_tokens=loaded.stop_tokens)
    return answers[0] if single else answers
