"""Held-out rows through a model: likelihoods of the given answers and of those that a task allows, and generated answers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lightning_ft.candidates import candidate_likelihoods
from lightning_ft.data.encode import pair_of
from lightning_ft.decoding import decode
from lightning_ft.engine.model import evaluating
from lightning_ft.errors import DataError, UsageError
from lightning_ft.evaluation import as_metrics
from lightning_ft.generation import batches_by_length, generate_texts, tracked
from lightning_ft.types import IGNORE_INDEX, Classified, Conversation, Message, Preference, ScoredRow, Text, Unpaired
from lightning_ft.words import MOST_PIECES, pieces_of_words

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from transformers import PreTrainedTokenizerBase

    from lightning_ft.data.encode import Encoder
    from lightning_ft.data.render import Template
    from lightning_ft.generation import Sampling
    from lightning_ft.metric import Metric
    from lightning_ft.types import Encoded, Example

MOST_ERRORS = 20
"""Rows that a refusal lists."""
NO_CANDIDATES = (
    "Expected a task with a fixed set of answers for metrics of candidates, got one where any text is an answer; name a --task "
    "that has one, or leave those metrics out."
)
"""What is said of metrics that cannot be computed for the task."""


@dataclass
class Costs:
    """What scoring took on this process; sums over calls."""

    likelihood_seconds: float = 0.0
    likelihood_tokens: int = 0
    """Tokens whose likelihood the model computed or that stand before one, padding not counted."""
    generation_seconds: float = 0.0
    generated_tokens: int = 0
    """Tokens of the answers as the tokenizer writes their text; stop tokens are not counted."""


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
    always: bool = False,
    candidates: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    batch_tokens: int = 8192,
    progress: bool = False,
    costs: Costs | None = None,
) -> list[ScoredRow]:
    """Every example after the model saw it, in the given order; none is dropped.

    The likelihood is that of all supervised tokens, with the same template and mask as in training and dropout off. Where
    a metric reads text and `generate` says so, the model also answers the last assistant turn; that turn's content and
    `meta["references"]` are the accepted answers.

    Of a pair the better answer is scored as the given one, and where a metric reads pairs the worse one, too; of both only the
    answer, no turn of the prompt. A pair of which `max_length` leaves one answer no supervised token has 0 tokens there: it is
    a wrong one for the metrics of pairs, never dropped.

    Args:
        model: A causal language model; its modes are as before afterwards.
        encoder: Makes token ids and labels of examples.
        template: Renders prompts; the one that `encoder` has.
        tokenizer: The model's tokenizer.
        examples: What to score. Of a classified text its label is scored.
        rows: `file:line` of each example.
        metrics: Decide whether text is generated.
        sampling: How tokens of the answers are chosen.
        generate: False: likelihoods only, whatever the metrics read.
        always: True: answers, even if no metric reads them.
        candidates: All answers that the task allows: where a metric reads them, the likelihood of each is computed.
        numbers: Of each example among all that are scored, here or elsewhere, by which sampled answers are drawn; they are
            checked together, by `check_examples`, before. None: its place here, and these are all.
        batch_tokens: Most tokens of a batch, padding and answers included.
        progress: Show a progress bar.
        costs: Where to add what it took.

    Raises:
        DataError: rows lack what a metric needs.
    """
    made, spent = as_metrics(metrics), costs or Costs()
    reading = {metric.reads for metric in made if generate or metric.reads != "text"} | ({"text"} if always else set())
    given = [as_given(example) for example in examples]
    encoded = encoder.encode(given, rows)
    assert len(encoded) == len(examples) == len(rows), "the encoder must return one result per example"
    scored = [
        ScoredRow(row, example, references=references_of(one)) for row, example, one in zip(rows, examples, given, strict=True)
    ]
    words = any(metric.reads_words for metric in made)
    for found, item in zip(scored, encoded, strict=True):
        _add_text(tokenizer, item, found, words=words)
    prompts = [_prompt(one, template) for one in given]
    if numbers is None:
        check_examples(made, examples, rows, candidates, reading)
    pairs = [(row, row.example) for row in scored if "pair" in reading and isinstance(row.example, Preference)]
    encoded += encoder.encode([pair_of(pair)[1] for _, pair in pairs], [row.row for row, _ in pairs])
    with evaluating(model):
        started = time.perf_counter()
        results = _likelihoods(model, tokenizer, encoded, batch_tokens, progress)
        for row, (nll, tokens, correct) in zip(scored, results, strict=False):  # after them come the worse answers
            row.nll, row.tokens, row.correct = nll, tokens, correct
        for (row, _), (nll, tokens, _) in zip(pairs, results[len(scored) :], strict=True):
            row.worse = nll, tokens
        if "candidates" in reading:
            _add_candidates(model, encoder, given, scored, candidates, progress)
        spent.likelihood_seconds += time.perf_counter() - started
        spent.likelihood_tokens += sum(len(item.input_ids) for item in encoded if item.supervised)
        if "text" in reading:
            started = time.perf_counter()
            places = range(len(scored)) if numbers is None else numbers
            asked = [(row, p, place) for row, p, place in zip(scored, prompts, places, strict=True) if p is not None]
            answers = generate_texts(
                model, tokenizer, [prompt for _, prompt, _ in asked], sampling, stop_tokens=template.stop_tokens(tokenizer),
                batch_tokens=batch_tokens, progress=progress, numbers=[place for _, _, place in asked],
            )  # fmt: skip
            for (row, prompt, _), answer in zip(asked, answers, strict=True):
                row.prompt, row.prediction = prompt, answer
            spent.generation_seconds += time.perf_counter() - started
            spent.generated_tokens += sum(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
    return scored


def unanswered(examples: Sequence[Example], rows: Sequence[str], candidates: Sequence[str] = ()) -> list[ScoredRow]:
    """The rows that a model is asked to answer, with what is known of them before it does: of candidates the names."""
    given = [(row, example, as_given(example)) for row, example in zip(rows, examples, strict=True)]
    allowed = dict.fromkeys(candidates, math.nan) if candidates else None
    return [
        ScoredRow(row, example, references=references_of(one), candidates=allowed)
        for row, example, one in given
        if isinstance(one, Conversation) and _asks(one)
    ]


def check_examples(
    metrics: Sequence[Metric], examples: Sequence[Example], rows: Sequence[str], candidates: Sequence[str],
    reading: Collection[str],
) -> list[ScoredRow]:  # fmt: skip
    """Whether examples that a model is going to answer have what the metrics need; those that it will answer.

    Args:
        metrics: Look at the rows.
        examples: All that are scored.
        rows: Their `file:line` for messages.
        candidates: All answers that the task allows.
        reading: Kinds of what is read, of which the metrics count.

    Raises:
        DataError: they have not.
        UsageError: a metric cannot be computed of any row.
    """
    asked = unanswered(examples, rows, candidates)
    check_rows(metrics, asked, set(reading) - {"pair"})
    check_rows(metrics, [ScoredRow(row, example) for row, example in zip(rows, examples, strict=True)], set(reading) & {"pair"})
    return asked


def check_rows(metrics: Sequence[Metric], rows: Sequence[ScoredRow], reading: Collection[str]) -> None:
    """Whether rows, which are all there are, have what the metrics need.

    Args:
        metrics: Look at the rows.
        rows: As `unanswered` has them, or with answers.
        reading: Kinds of what is read, of which the metrics count.

    Raises:
        DataError: they have not; names up to 20 rows.
        UsageError: a metric cannot be computed of any row.
    """
    wrong: list[str] = []

    def look(metric: Metric, check: Callable[[], None]) -> None:
        try:
            check()
        except UsageError:  # of the metric itself, whatever the row
            raise
        except ValueError as error:
            wrong.append(f"{error} (metric {metric.name}).")

    for metric in metrics:
        read = rows if metric.reads in reading else ()
        for row in read:
            look(metric, partial(metric.check, row))
        if read and not wrong:
            look(metric, partial(metric.check_all, read))
    if wrong:
        more = f"\n... and {len(wrong) - MOST_ERRORS} more." if len(wrong) > MOST_ERRORS else ""
        raise DataError("\n".join(wrong[:MOST_ERRORS]) + more)


def as_given(example: Example) -> Conversation | Text:
    """The text whose likelihood counts, as a conversation or raw text; of answers to a prompt the prompt does not count."""
    if isinstance(example, Preference):
        return pair_of(example)[0]
    if isinstance(example, Unpaired):
        return Conversation(_unweighted(example.prompt) + example.completion, meta=example.meta)
    if isinstance(example, Classified):
        return example.as_conversation()
    return example


def references_of(example: Conversation | Text) -> tuple[str, ...]:
    """Accepted answers: the last assistant turn, unless it is blank, then what the row listed as `references`."""
    if isinstance(example, Text):
        return ()
    last = _last_answer(example)
    if last is not None and not example.messages[last].content.strip():
        last = None
    further = example.meta.get("references") or ()
    further = (further,) if isinstance(further, str) else tuple(text for text in further if isinstance(text, str))
    return tuple(dict.fromkeys(((example.messages[last].content,) if last is not None else ()) + further))


def _likelihoods(
    model: Any, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded], batch_tokens: int, progress: bool
) -> list[tuple[float, int, int]]:
    """Of each text sum of nll (nats), supervised tokens and right ones; zeros where nothing is supervised."""
    from lightning_ft.data.collate import pad
    from lightning_ft.engine.loss import score_rows

    used = [i for i, item in enumerate(encoded) if item.supervised]
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    device = next(model.parameters()).device
    batches = batches_by_length([len(encoded[i].input_ids) for i in used], batch_tokens)
    found = [(0.0, 0, 0)] * len(encoded)
    for batch in tracked(batches, "scoring", shown=progress):
        members = [used[j] for j in batch]
        with torch.no_grad():
            results = score_rows(model, pad([encoded[i] for i in members], pad_id).to(device))
        for i, result in zip(members, results, strict=True):
            assert result[1] == encoded[i].supervised, "the loss and the encoder must count the same supervised tokens"
            found[i] = result
    return found


def _add_candidates(
    model: Any,
    encoder: Encoder,
    given: Sequence[Conversation | Text],
    scored: Sequence[ScoredRow],
    candidates: Sequence[str],
    progress: bool,
) -> None:
    """Fill in the likelihood of each allowed answer in the place of the last one; a text has no such place."""
    if not candidates:
        raise UsageError(NO_CANDIDATES)
    answered = [(row, one) for row, one in zip(scored, given, strict=True) if isinstance(one, Conversation) and _asks(one)]
    for row, one in tracked(answered, "candidates", shown=progress):
        last = _last_answer(one)
        before = one.messages[:last]
        variants = [Conversation((*before, Message("assistant", text)), one.tools) for text in candidates]
        encoded = encoder.encode([_only_last(variant) for variant in variants], [row.row] * len(variants))
        whole = not any(item.truncated for item in encoded)
        # A row that was cut has no place for its answer: it is a wrong one, with no likelihood of any.
        row.candidates = dict(zip(candidates, candidate_likelihoods(model, encoded), strict=True)) if whole else {}


def _add_text(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, scored: ScoredRow, *, words: bool) -> None:
    """Fill in bytes, and words if wanted, of the text that the supervised tokens stand for, special tokens not counted."""
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
    texts = [decode(tokenizer, span) for span in spans]
    scored.utf8_bytes = sum(len(text.encode()) for text in texts)
    if not words:
        return
    pieces = [number for places in pieces_of_words(tokenizer, texts) for _, _, number in places]
    scored.words, scored.split_words = len(pieces), sum(number > MOST_PIECES for number in pieces)


def _last_answer(example: Conversation) -> int | None:
    """Index of the last assistant turn."""
    return next((i for i in reversed(range(len(example.messages))) if example.messages[i].role == "assistant"), None)


def _asks(example: Conversation) -> bool:
    """Whether there is something before the last assistant turn."""
    return bool(_last_answer(example))


def _only_last(example: Conversation) -> Conversation:
    """The conversation with nothing but its last turn supervised."""
    *before, last = example.messages
    return replace(example, messages=(*_unweighted(before), replace(last, weight=1.0)))


def _unweighted(turns: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(turn, weight=0.0) for turn in turns)


def _prompt(example: Conversation | Text, template: Template) -> str | None:
    """The rendered text before the last assistant turn; None where there is nothing to answer."""
    if not isinstance(example, Conversation) or not _asks(example):
        return None
    return template.prompt(example.messages[: _last_answer(example)], example.tools)
