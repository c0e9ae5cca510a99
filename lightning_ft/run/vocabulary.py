"""Tokens that a task adds to the tokenizer of a run, and the method that trains their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_ft.backbone import load_tokenizer, read_json
from lightning_ft.data.pipeline import Pipeline
from lightning_ft.errors import UsageError
from lightning_ft.loading import ADAPTER
from lightning_ft.method import Method
from lightning_ft.registry import registry
from lightning_ft.run.strategies import SHARDED
from lightning_ft.run.texts import Texts
from lightning_ft.vocabulary import disturbing, new_tokens, with_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_ft.config import TrainingConfig
    from lightning_ft.loading import Location
    from lightning_ft.run.choices import Choices
    from lightning_ft.types import Example

SHOWN = 8
"""New tokens that are printed."""


class Extended(NamedTuple):
    """What a run takes in place of what was chosen."""

    choices: Choices
    """With a method that trains the rows of `tokens`, and those that the model's adapter has already."""
    texts: Texts
    tokens: dict[int, str]
    """The tokens that are new in this run, by id."""


def extend(config: TrainingConfig, choices: Choices, location: Location, texts: Texts, say: Callable[[str], None]) -> Extended:
    """Give the tokenizer what the task asks for, and take a method that trains these rows; before anything is encoded.

    An adapter that has rows for tokens its base lacks goes on training them.

    Args:
        config: The run's options.
        choices: What they name.
        location: Of the model.
        texts: Of its own tokenizer.
        say: Prints a line.

    Raises:
        UsageError: the tokenizer cannot take a token, method or strategy cannot train it, or the model is an adapter.
    """
    task = choices.task
    asked = list(task.new_tokens(_training(config, choices, location, texts, say), texts.tokenizer)) if task is not None else []
    if asked:
        _check_plain(config, location)
    if location.adapter is not None and (ids := _rows_of(config, location, texts)):
        why = "the adapter has rows of its own for tokens"
        return Extended(replace(choices, method=training(choices.method, ids, why, config.strategy)), texts, {})
    if not asked:
        return Extended(choices, texts, {})
    odd = disturbing(texts.tokenizer, asked)
    if odd:
        raise UsageError(
            f"Expected a tokenizer that reads and writes the same text with new tokens; that of '{config.model}' does "
            f"not with {odd[0]!r}; leave the task's new tokens out."
        )
    tokenizer = with_tokens(texts.tokenizer, asked)
    found = new_tokens(texts.tokenizer, tokenizer)
    method = training(choices.method, list(found), "the task adds tokens", config.strategy)
    shown = ", ".join(text.strip() for text in list(found.values())[:SHOWN])
    say(f"vocabulary: {len(found):,} new tokens ({shown}{' ...' if len(found) > SHOWN else ''})")
    grown = Texts.of(tokenizer, config.template, config.max_length, texts.positions)
    return Extended(replace(choices, method=method), grown, found)


def training(method: Method, ids: Sequence[int], why: str, strategy: str = "auto") -> Method:
    """The method with the rows of these tokens among what it trains.

    Raises:
        UsageError: it leaves such rows as they are, or cannot train them under this strategy.
    """
    found = method.training_tokens(list(ids))
    if found is None:
        methods = registry().methods
        able = [name for name in methods if methods[name].cls.training_tokens is not Method.training_tokens]
        raise UsageError(
            f"Expected a method that trains the rows of new tokens, as {why}; got {method.name}, which leaves "
            f"them as they are; type --method {' or '.join(able)}."
        )
    if strategy in SHARDED and found.trains_rows:
        raise UsageError(
            f"Expected --strategy auto or ddp for --method {found.name}, as {why}, and rows beside a matrix that lies in "
            f"parts cannot train; got {strategy}; leave --strategy out."
        )
    return found


def _check_plain(config: TrainingConfig, location: Location) -> None:
    """Refuse an adapter: its config says which rows it has, and its base has none for further ones."""
    if location.adapter is not None:
        raise UsageError(
            f"Expected --model to be a plain model where the task adds tokens, got the adapter '{config.model}'; name "
            "a plain model, or one with the adapter merged into it."
        )


def _training(
    config: TrainingConfig, choices: Choices, location: Location, texts: Texts, say: Callable[[str], None]
) -> Iterator[Example]:
    """The training examples, as the run's own pipeline will find them, whatever the tokenizer is by then."""
    _check_plain(config, location)
    pipeline = Pipeline(config, registry(), texts.encoder, choices.task, choices.objective.examples, say)
    yield from pipeline.training_examples()


def _rows_of(config: TrainingConfig, location: Location, texts: Texts) -> list[int]:
    """Tokens beyond the base's own whose rows the adapter holds."""
    assert location.adapter is not None
    stored: Any = read_json(location.adapter / ADAPTER).get("trainable_token_indices") or ()
    ids = next(iter(stored.values()), ()) if isinstance(stored, dict) else stored
    if not ids:
        return []
    base = load_tokenizer(location.base, revision=location.revision, trust_remote_code=config.trust_remote_code)
    beyond = new_tokens(base, texts.tokenizer)
    return [number for number in ids if number in beyond]
