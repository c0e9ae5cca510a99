"""Judging the answers of a comparison, and of two models to some prompts."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ft.atomic import write_text
from lightning_ft.endpoint import TIMEOUT, ChatEndpoint, key_of_environment
from lightning_ft.errors import UsageError
from lightning_ft_compare import judge as judging
from lightning_ft_compare.evaluations import prompt_of
from lightning_ft_compare.judge import CRITERIA, FAILURES, Case, Ruling, criteria_of
from lightning_ft_compare.results import Judged, plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning_ft_compare.evaluations import Side
    from lightning_ft_compare.results import Report

URL_VARIABLE, MODEL_VARIABLE = "LIGHTNING_FT_JUDGE", "LIGHTNING_FT_JUDGE_MODEL"
"""Where `compare_models` looks for a judge that it is not given."""
RULINGS = "rulings.jsonl"


@dataclass(frozen=True)
class Judge:
    """A model behind a URL that compares answers."""

    url: str
    """An endpoint of OpenAI's chat completions; its key is read from $OPENAI_API_KEY."""
    model: str
    criteria: Sequence[str] = tuple(CRITERIA)
    """Names of `judge.CRITERIA`, or texts of several words."""
    most_failures: float = FAILURES
    """Share of rows that may fail by a criterion."""
    timeout: float = TIMEOUT
    """Seconds without a byte after which a request is tried again."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError(f"Expected --judge_model NAME together with --judge {self.url}, got none; name the model.")
        if not 0 <= self.most_failures <= 1:
            raise UsageError(f"Expected --judge_failures to be a share from 0 to 1; got {self.most_failures:g}.")
        if not 0 < self.timeout < float("inf"):
            raise UsageError(f"Expected --judge_timeout to be more than 0 seconds; got {self.timeout:g}.")
        criteria_of(self.criteria)
        _ = self.endpoint

    @property
    def endpoint(self) -> ChatEndpoint:
        """Who is asked."""
        return ChatEndpoint(self.url, self.model, key_of_environment(), flag="--judge", timeout=self.timeout)

    def check(self) -> None:
        """Ask for a word, before hours of evaluation, so that a wrong URL, key or model is known at once.

        Raises:
            EndpointError: it does not answer. UsageError: it refuses the key, the model or the request.
        """
        self.endpoint.ask([{"role": "user", "content": "Reply with the word ready."}], temperature=0)

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        """A ruling per case, in order; fewer where too many failed."""
        return judging.rulings(cases, criteria_of(self.criteria), self.endpoint, most_failures=self.most_failures)

    def judged(self, report: Report, sides: Sequence[Side], folder: Path) -> Report:
        """The report with the judge's verdicts of each pair; every ruling is written to rulings.jsonl.

        Raises:
            UsageError: no row has an answer of both models.
        """
        from lightning_ft.run.quiet import say

        base, *others = sides
        pairs, lines = [], []
        for pair, side in zip(report.pairs, others, strict=True):
            cases = cases_of(base, side)
            if not cases:
                raise UsageError(
                    f"Expected answers of {base.letter} and {side.letter} for --judge, got none; name a metric that reads text "
                    "with --metrics, so that answers are generated."
                )
            say(f"{side.letter}: judging {len(cases)} rows by {self.model}")
            found = self.rule(cases)
            lines += [json.dumps({"letter": side.letter, **as_line(ruling)}, ensure_ascii=False) for ruling in found]
            summed = judging.summary(found, criteria_of(self.criteria), level=report.level)
            pairs.append(dataclasses.replace(pair, judged=summed, judged_rows=len(cases)))
        write_text(folder / RULINGS, "".join(f"{line}\n" for line in lines))
        return dataclasses.replace(report, pairs=tuple(pairs), judge=self.model)

    def check_failures(self, report: Report) -> None:
        """Refuse a judgement with too many failures.

        Raises:
            EndpointError: there are.
        """
        for pair in report.pairs:
            where = "" if report.folder is None else f". All that was found is in {report.folder}"
            judging.check_failures(pair.judged, self.most_failures, pair.judged_rows, where=where)


def cases_of(base: Side, other: Side) -> list[Case]:
    """The rows that both have answered."""
    return [
        Case(a.row, prompt_of(a.example), a.references[0] if a.references else None, a.prediction, b.prediction)
        for a, b in zip(base.evaluation.rows, other.evaluation.rows, strict=True)
        if a.prediction is not None and b.prediction is not None
    ]


def as_line(ruling: Ruling) -> dict[str, Any]:
    """A ruling for rulings.jsonl."""
    values: dict[str, Any] = plain(ruling)
    return values | {"inconsistent": sorted(ruling.inconsistent)}


@dataclass(frozen=True)
class JudgedAnswers:
    """The answers of two models to some prompts, and what a judge said of them."""

    prompts: tuple[str, ...]
    answers_a: tuple[str, ...]
    answers_b: tuple[str, ...]
    rulings: tuple[Ruling, ...]
    """One per prompt."""
    criteria: tuple[Judged, ...]
    """Model B against model A, by criterion."""


def compare_models(
    prompts: Sequence[str], model_a: str, model_b: str, criteria: Sequence[str] = tuple(CRITERIA), *,
    judge: str | None = None, judge_model: str | None = None, most_failures: float = FAILURES, level: float = 0.95,
    **sampling: Any,
) -> JudgedAnswers:  # fmt: skip
    """Let two models answer prompts and a third one judge the answers, in both orders.

    Args:
        prompts: Each is taken as a user's turn.
        model_a: The baseline; anything that `lightning_ft.generate` takes.
        model_b: The model that is compared with it.
        criteria: `relevance`, `helpfulness`, `accuracy`, or texts of several words.
        judge: URL of OpenAI's chat completions; None: $LIGHTNING_FT_JUDGE. Its key is read from $OPENAI_API_KEY.
        judge_model: The endpoint's model; None: $LIGHTNING_FT_JUDGE_MODEL.
        most_failures: Share of prompts that may fail by a criterion.
        level: Coverage of the intervals of the win rates.
        **sampling: Fields of `Sampling`: `max_new_tokens`, `temperature` ...

    Raises:
        UsageError: wrong options, no judge, or one that refuses key, model or request.
        EndpointError: the judge does not answer, or failed more often than it may.
    """
    from lightning_ft import generate

    url, name = judge or os.environ.get(URL_VARIABLE, ""), judge_model or os.environ.get(MODEL_VARIABLE, "")
    if not url:
        raise UsageError(f"Expected judge= to be the URL of a model that judges, got none; give it, or set {URL_VARIABLE}.")
    if not name:
        raise UsageError(f"Expected judge_model= to name the model that judges, got none; give it, or set {MODEL_VARIABLE}.")
    if not prompts or isinstance(prompts, str):
        raise UsageError("Expected prompts= to be a list of at least one prompt.")
    if model_a == model_b:
        raise UsageError(f"Expected two different models, got '{model_a}' twice.")
    one = Judge(url, name, criteria, most_failures)
    one.check()
    answers = [tuple(generate(model, list(prompts), **sampling)) for model in (model_a, model_b)]
    cases = [Case(f"prompt {i}", *rest) for i, rest in enumerate(
        ((prompt, None, a, b) for prompt, a, b in zip(prompts, *answers, strict=True)), start=1
    )]  # fmt: skip
    found = one.rule(cases)
    summed = judging.summary(found, criteria_of(criteria), level=level)
    judging.check_failures(summed, most_failures, len(cases))
    return JudgedAnswers(tuple(prompts), answers[0], answers[1], tuple(found), summed)
