"""Held-out rows through a model: likelihoods of the given answers, generated answers, and metrics over both."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.atomic import write_json, write_text
from lightning_ft.decoding import decode
from lightning_ft.errors import DataError
from lightning_ft.generation import batches_by_length, evaluating, generate_texts, tracked
from lightning_ft.types import IGNORE_INDEX, Classified, Conversation, Message, Preference, ScoredRow, Text, Unpaired

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.generation import Sampling
    from lightning_ft.metric import Metric
    from lightning_ft.types import Encoded, Example

EXAMPLES = {cls.__name__: cls for cls in (Conversation, Text, Preference, Unpaired, Classified)}
RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
FORMAT_VERSION = 1


def score_examples(
    model: Any,
    encoder: Encoder,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    rows: Sequence[str],
    *,
    metrics: Sequence[Metric | type[Metric] | str],
    sampling: Sampling,
    generate: bool = True,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> list[ScoredRow]:
    """Every example after the model saw it, in the given order; none is dropped.

    The likelihood is that of all supervised tokens, with the same template and mask as in training and dropout off. Where
    a metric reads text and `generate` says so, the model also answers the last assistant turn; that turn's content and
    `meta["references"]` are the accepted answers.

    Args:
        model: A causal language model; its modes are as before afterwards.
        encoder: Makes token ids and labels of examples.
        template: Renders prompts; the one that `encoder` has.
        tokenizer: The model's tokenizer.
        examples: What to score. Of a pair the better answer is scored, of a classified text its label.
        rows: `file:line` of each example.
        metrics: Decide whether text is generated.
        sampling: How tokens of the answers are chosen.
        generate: False: likelihoods only, whatever the metrics read.
        batch_tokens: Most tokens of a batch, padding and answers included.
        progress: Show a progress bar.
    """
    given = [as_given(example) for example in examples]
    encoded = encoder.encode(given, rows)
    assert len(encoded) == len(examples) == len(rows), "the encoder must return one result per example"
    scored = [
        ScoredRow(row, example, utf8_bytes=_supervised_bytes(tokenizer, item), references=references_of(one))
        for row, example, one, item in zip(rows, examples, given, encoded, strict=True)
    ]
    with evaluating(model):
        _add_likelihoods(model, tokenizer, encoded, scored, batch_tokens, progress)
        if generate and any(metric.reads == "text" for metric in as_metrics(metrics)):
            pairs = [(row, _prompt(one, template)) for row, one in zip(scored, given, strict=True)]
            prompted = [(row, prompt) for row, prompt in pairs if prompt is not None]
            answers = generate_texts(
                model, tokenizer, [prompt for _, prompt in prompted], sampling,
                stop_tokens=template.stop_tokens(tokenizer), batch_tokens=batch_tokens, progress=progress,
            )  # fmt: skip
            for (row, prompt), answer in zip(prompted, answers, strict=True):
                row.prompt, row.prediction = prompt, answer
    return scored


def as_given(example: Example) -> Conversation | Text:
    """The text whose likelihood counts, as a conversation or raw text."""
    if isinstance(example, Preference):
        return Conversation(example.prompt + example.chosen, meta=example.meta)
    if isinstance(example, Unpaired):
        return Conversation(example.prompt + example.completion, meta=example.meta)
    if isinstance(example, Classified):
        return example.as_conversation()
    return example


def references_of(example: Conversation | Text) -> tuple[str, ...]:
    """Accepted answers: the last assistant turn, then what the row listed as `references`."""
    if isinstance(example, Text):
        return ()
    last = _last_answer(example)
    further = example.meta.get("references") or ()
    further = (further,) if isinstance(further, str) else tuple(text for text in further if isinstance(text, str))
    return tuple(dict.fromkeys(((example.messages[last].content,) if last is not None else ()) + further))


def as_metrics(metrics: Sequence[Metric | type[Metric] | str]) -> list[Metric]:
    """Instances of metrics given as such, as classes, or by registered name."""
    from lightning_ft.registry import registry

    made = (registry().metrics[metric].cls if isinstance(metric, str) else metric for metric in metrics)
    return [metric() if isinstance(metric, type) else metric for metric in made]


def statistics(metric: Metric, rows: Sequence[ScoredRow]) -> Tensor | None:
    """(N, K) float64 statistics of a metric; None where it has no row to read.

    A metric of text reads the rows that have a prediction, a metric of likelihoods those with supervised tokens; other
    rows have zeros, which change no sum. The metric's own state is not used, so ranks do not communicate.
    """
    found = [list(metric.statistics(row)) if _readable(metric, row) else None for row in rows]
    width = next((len(values) for values in found if values is not None), None)
    if width is None:
        return None
    return torch.tensor([values or [0.0] * width for values in found], dtype=torch.float64)


def compute(metrics: Sequence[Metric | type[Metric] | str], scored: Sequence[ScoredRow]) -> dict[str, float]:
    """Value of each metric by name; a metric that has nothing to read is left out."""
    return Evaluation.of(metrics, scored).metrics


@dataclass
class Evaluation:
    """What a model did on held-out rows."""

    metrics: dict[str, float]
    """Values by metric name."""
    rows: list[ScoredRow]
    tables: dict[str, Tensor]
    """(N, K) statistics by metric name: what is resampled for an interval."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else belongs to the result: model, data, sampling, seed, number format ..."""
    folder: Path | None = None
    """Where it was written."""

    @classmethod
    def of(
        cls, metrics: Sequence[Metric | type[Metric] | str], rows: Sequence[ScoredRow], details: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """Metrics over scored rows.

        A metric that has no row to read (`statistics`) has no value and is left out.
        """
        values, tables = {}, {}
        for metric in as_metrics(metrics):
            table = statistics(metric, rows)
            if table is not None:
                tables[metric.name] = table
                values[metric.name] = float(metric.finish(table.sum(0)))
        return cls(values, list(rows), tables, dict(details or {}))

    def write(self, folder: Path) -> None:
        """`results.json` (metrics and details) and `predictions.jsonl` (one row a line, with its statistics)."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {name: table.tolist() for name, table in self.tables.items()}
        lines = []
        for i, row in enumerate(self.rows):
            values = _row_as_dict(row) | {"statistics": {name: table[i] for name, table in tables.items()}}
            lines.append(json.dumps(_strict(values), ensure_ascii=False, default=str))
        write_text(folder / PREDICTIONS, "".join(f"{line}\n" for line in lines))
        results = {
            "version": FORMAT_VERSION,
            "metrics": _strict(self.metrics),
            "rows": len(self.rows),
            "generated": sum(row.prediction is not None for row in self.rows),
            "tokens": sum(row.tokens for row in self.rows),
            "details": self.details,
        }
        write_json(folder / RESULTS, results)
        self.folder = folder

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """What `write` left in a folder.

        Raises:
            DataError: files are missing, broken, or of another version.
        """
        try:
            results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            lines = [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").split("\n") if line]
            if results["version"] != FORMAT_VERSION:
                raise ValueError(f"version {results['version']}, expected {FORMAT_VERSION}")
            tables = {
                name: torch.tensor([[_number(x) for x in line["statistics"][name]] for line in lines], dtype=torch.float64)
                for name in results["metrics"]
            }
            metrics = {name: _number(value) for name, value in results["metrics"].items()}
            return cls(metrics, [_row_from_dict(line) for line in lines], tables, results["details"], folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder}: expected an evaluation ({RESULTS} and {PREDICTIONS}), got {type(error).__name__}: {error}; "
                "type `lightning-ft evaluate` to make one."
            ) from error


def _add_likelihoods(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    scored: Sequence[ScoredRow],
    batch_tokens: int,
    progress: bool,
) -> None:
    """Fill in nll, tokens and correct; a row without a supervised token keeps its zeros."""
    from lightning_ft.data.collate import pad
    from lightning_ft.engine.loss import score_rows

    used = [i for i, item in enumerate(encoded) if item.supervised]
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    device = next(model.parameters()).device
    batches = batches_by_length([len(encoded[i].input_ids) for i in used], batch_tokens)
    for batch in tracked(batches, "scoring", shown=progress):
        members = [used[j] for j in batch]
        with torch.no_grad():
            results = score_rows(model, pad([encoded[i] for i in members], pad_id).to(device))
        for i, (nll, tokens, correct) in zip(members, results, strict=True):
            assert tokens == encoded[i].supervised, "the loss and the encoder must count the same supervised tokens"
            scored[i].nll, scored[i].tokens, scored[i].correct = nll, tokens, correct


def _supervised_bytes(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> int:
    """UTF-8 bytes of the text that the supervised tokens stand for, special tokens not counted."""
    spans: list[list[int]] = []
    inside = False
    for token, label in zip(encoded.input_ids[1:], encoded.labels[1:], strict=True):
        if label == IGNORE_INDEX:
            inside = False
            continue
        if not inside:
            spans.append([])
        spans[-1].append(token)
        inside = True
    return sum(len(decode(tokenizer, span).encode()) for span in spans)


def _last_answer(example: Conversation) -> int | None:
    """Index of the last assistant turn."""
    return next((i for i in reversed(range(len(example.messages))) if example.messages[i].role == "assistant"), None)


def _prompt(example: Conversation | Text, template: Template) -> str | None:
    """The rendered text before the last assistant turn; None where there is nothing to answer."""
    last = _last_answer(example) if isinstance(example, Conversation) else None
    if last is None or last == 0 or not isinstance(example, Conversation):
        return None
    return template.prompt(example.messages[:last], example.tools)


def _readable(metric: Metric, row: ScoredRow) -> bool:
    return row.prediction is not None if metric.reads == "text" else row.tokens > 0


def _strict(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _row_as_dict(row: ScoredRow) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "example"}
    return values | {"example": {"type": type(row.example).__name__, **dataclasses.asdict(row.example)}}


def _row_from_dict(line: Mapping[str, Any]) -> ScoredRow:
    values = {key: value for key, value in line.items() if key not in ("example", "statistics")}
    values |= {"nll": _number(line["nll"]), "references": tuple(line["references"])}
    kept = dict(line["example"])
    cls = EXAMPLES[kept.pop("type")]
    for name in ("messages", "prompt", "chosen", "rejected", "completion"):
        if name in kept:
            kept[name] = tuple(Message(**turn) for turn in kept[name])
    if "tools" in kept:
        kept["tools"] = tuple(kept["tools"])
    return ScoredRow(example=cls(**kept), **values)
