"""Tokens that a task adds to the tokenizer of a run, and the method that trains their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_ft.backbone import load_tokenizer, read_json
from lightning_ft.data.encode import Encoder
from lightning_ft.data.pipeline import Pipeline
from lightning_ft.data.render import Template
from lightning_ft.errors import UsageError
from lightning_ft.loading import ADAPTER
from lightning_ft.method import Method
from lightning_ft.vocabulary import disturbing, new_tokens, with_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_ft.run.session import Session
    from lightning_ft.types import Example

SHOWN = 8
"""New tokens that are printed."""


def extend(session: Session) -> dict[int, str]:
    """Give the tokenizer what the task asks for, and take a method that trains these rows; before anything is encoded.

    An adapter that has rows for tokens its base lacks goes on training them.

    Returns:
        The tokens that are new in this run, by id.

    Raises:
        UsageError: the tokenizer cannot take a token, method or strategy cannot train it, or the model is an adapter.
    """
    task, location = session.choices.task, session.location
    texts = list(task.new_tokens(_training(session), session.tokenizer)) if task is not None else []
    if texts:
        _check_plain(session)
    if location.adapter is not None and (ids := _rows_of(session)):
        _train(session, ids, "the adapter has rows of its own for tokens")
        return {}
    if not texts:
        return {}
    odd = disturbing(session.tokenizer, texts)
    if odd:
        raise UsageError(
            f"Expected a tokenizer that reads and writes the same text with new tokens; that of '{session.config.model}' does "
            f"not with {odd[0]!r}; leave the task's new tokens out."
        )
    before, session.tokenizer = session.tokenizer, with_tokens(session.tokenizer, texts)
    found = new_tokens(before, session.tokenizer)
    _train(session, list(found), "the task adds tokens")
    shown = ", ".join(text.strip() for text in list(found.values())[:SHOWN])
    session.say(f"vocabulary: {len(found):,} new tokens ({shown}{' ...' if len(found) > SHOWN else ''})")
    return found


def _check_plain(session: Session) -> None:
    """Refuse an adapter: its config says which rows it has, and its base has none for further ones."""
    if session.location.adapter is not None:
        raise UsageError(
            f"Expected --model to be a plain model where the task adds tokens, got the adapter '{session.config.model}'; name "
            "a plain model, or one with the adapter merged into it."
        )


def _training(session: Session) -> Iterator[Example]:
    """The training examples, as the run's own pipeline will find them, whatever the tokenizer is by then."""
    _check_plain(session)
    template = Template.resolve(session.config.template, session.tokenizer)
    encoder = Encoder(session.tokenizer, template, 2)
    choices = session.choices
    pipeline = Pipeline(session.config, session.registry, encoder, choices.task, choices.objective.examples, session.say)
    yield from pipeline.training_examples()


def _train(session: Session, ids: list[int], why: str) -> None:
    """Take a method that trains these rows."""
    method = session.choices.method.training_tokens(ids)
    if method is None:
        methods = session.registry.methods
        able = [name for name in methods if methods[name].cls.training_tokens is not Method.training_tokens]
        raise UsageError(
            f"Expected a method that trains the rows of new tokens, as {why}; got {session.choices.method.name}, which leaves "
            f"them as they are; type --method {' or '.join(able)}."
        )
    if session.sharded and not method.trains_base:
        raise UsageError(
            f"Expected --strategy auto or ddp for --method {method.name}, as {why}, and rows beside a matrix that lies in "
            f"parts cannot train; got {session.config.strategy}; leave --strategy out."
        )
    session.choices = replace(session.choices, method=method)


def _rows_of(session: Session) -> list[int]:
    """Tokens beyond the base's own whose rows the adapter holds."""
    location = session.location
    assert location.adapter is not None
    stored: Any = read_json(location.adapter / ADAPTER).get("trainable_token_indices") or ()
    ids = next(iter(stored.values()), ()) if isinstance(stored, dict) else stored
    if not ids:
        return []
    trusted = session.config.trust_remote_code
    base = load_tokenizer(location.base, revision=location.revision, trust_remote_code=trusted)
    beyond = new_tokens(base, session.tokenizer)
    return [number for number in ids if number in beyond]
