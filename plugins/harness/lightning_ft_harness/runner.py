"""lm-eval's evaluation of tasks on a model in memory."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError
from lightning_ft.types import Benchmarked, Measurement
from lightning_ft_harness.files import find, said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_ft.loading import Loaded

PYTHON_SEED, SEED = 0, 1234
"""Seeds of lm-eval's own runner: they decide which solved examples a prompt gets."""
RESAMPLES = 1000
"""Draws of a bootstrapped standard error, which lm-eval takes where there is no formula."""


def run(
    loading: Callable[[], Loaded],
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    max_length: int | None = None,
    apply_chat_template: bool = False,
) -> Benchmarked:
    """What the model does on the tasks, as `lm_eval.simple_evaluate` has it.

    That function is not called, because it also asks git, pip and the machine for reports that nobody reads here.

    Args:
        loading: Gives the model; called when the tasks are found to be sound.
        tasks: Files and folders of tasks, else names of lm-eval's own.
        num_fewshot: Solved examples in each prompt, but for tasks that say 0 themselves; None: as the task says.
        limit: First documents of each task; below 1 a share of them.
        max_length: Longest input in tokens; None: the model's context.
        apply_chat_template: Ask in turns, by the tokenizer's template.

    Raises:
        UsageError: lm-eval is missing, or a task cannot be found, read or run.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("Expected lm-eval for --harness, found none; type `pip install 'lm-eval>=0.4.13,<0.5'`.")
    with quiet():
        found = find(tasks)
        for task in found["tasks"].values():
            set_examples(task, num_fewshot)
    loaded = loading()
    if apply_chat_template and not loaded.tokenizer.chat_template:
        raise UsageError(
            "Expected a tokenizer with a chat template for --apply_chat_template, got one without; leave the flag out."
        )
    from lightning_ft.engine.model import base_model

    if apply_chat_template:  # answers end where the template ends them, which need not be the end of text
        base_model(loaded.model).generation_config.eos_token_id = list(loaded.stop_tokens)
    from lightning_ft_harness.language_model import LanguageModel

    with quiet():
        results = _evaluate(LanguageModel(loaded, max_length), found, limit, apply_chat_template)
    return Benchmarked(
        measurements(results),
        results["samples"],
        {
            "lm_eval": version("lm-eval"),
            "task_versions": results["versions"],
            "shots": results["n-shot"],
            "documents": results["n-samples"],
        },
    )


def set_examples(task: Any, num_fewshot: int | None) -> None:
    """Solved examples as lm-eval's runner sets them: a task that says 0 itself keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)


def _evaluate(model: Any, found: Mapping[str, Any], limit: float | None, apply_chat_template: bool) -> dict[str, Any]:
    """lm-eval's results."""
    import numpy as np
    import torch
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate

    random.seed(PYTHON_SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    whole = int(limit) if limit is not None and limit >= 1 else limit
    try:
        results: dict[str, Any] = evaluate(
            lm=model, task_dict=found, limit=whole, bootstrap_iters=RESAMPLES, apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )  # fmt: skip
    except (ArithmeticError, AssertionError, LookupError, TemplateError, TypeError, ValueError) as error:
        raise UsageError(
            f"Expected tasks that lm-eval can run on this model ({', '.join(found['tasks'])}), got {said(error)}; run again "
            "with --debug for the place."
        ) from error
    return results


def measurements(results: Mapping[str, Any]) -> list[Measurement]:
    """Each number of lm-eval's results; its keys are `metric,filter` and `metric_stderr,filter`."""
    out = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            better = (results["higher_is_better"].get(task) or {}).get(metric)
            out.append(
                Measurement(
                    task, metric, float(value), float(error) if isinstance(error, (int, float)) else None,
                    int(values.get("sample_len") or 0), better, "" if chosen == "none" else chosen,
                )
            )  # fmt: skip
    return out


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it lm-eval prints nothing where nobody looks, and starts no processes for standard errors."""
    logger, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    kept = os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # Peft says so of every prompt that a soft prompt stands before; `LanguageModel` pads none of them.
            warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient tuning")
            if not sys.stderr.isatty():  # its progress bars have no switch
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield
    finally:
        logger.setLevel(level)
        if kept is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = kept
