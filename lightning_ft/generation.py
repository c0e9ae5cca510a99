"""Answers of a model: many prompts at once for scoring, or one as a stream for a chat.

Transformers' `generate` runs the loop, with the dynamic cache (a static one is compiled per shape, which costs more than
the answers of an evaluation). The generation defaults of the model's folder are set aside for the call, so that the
result depends on `Sampling` alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lightning_ft.decoding import Chooser, Closed, Pieces, StopText, TokenQueue, decode
from lightning_ft.decoding import Sampling as Sampling
from lightning_ft.engine.model import evaluating
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
T = TypeVar("T")


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    stop_tokens: Sequence[int],
    batch_tokens: int = 8192,
    progress: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[str]:
    """The answers to rendered prompts, in their order.

    Prompts of similar length share a batch, padded on the left and masked, so that in float32 the answers do not depend
    on the batch. Where prompt and answer together exceed the model's context, the answer is the shorter for it; a prompt
    that leaves less than `min(max_new_tokens, context / 2)` loses tokens after its first one (which may be the
    begin-of-text token). How many prompts were cut is logged as a warning.

    Args:
        model: A causal language model of transformers, or peft's wrapper of one.
        tokenizer: Its tokenizer.
        prompts: Texts as the template rendered them; no special token is added.
        sampling: How tokens are chosen.
        stop_tokens: Any of these ends an answer and is not part of it.
        batch_tokens: Most tokens of a batch, answers and padding included; a single prompt may be longer.
        progress: Show a progress bar.
        numbers: Of each prompt, which with the seed decides its draws; None: its place here.
    """
    drawn = range(len(prompts)) if numbers is None else numbers
    ids = _encode(model, tokenizer, prompts, sampling)
    answers = [""] * len(ids)
    rooms = _rooms(model, ids, sampling)
    padded = not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    # A batch ends as one, so its rows have the same room. Peft puts virtual tokens before the padding and drops the
    # positions, so that there a row would depend on its padding: only rows of one length share a batch.
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (row, room) in enumerate(zip(ids, rooms, strict=True)):
        groups.setdefault((room, 0 if padded else len(row)), []).append(i)
    batches: list[list[int]] = []
    for (room, _), members in sorted(groups.items(), reverse=True):
        chosen = batches_by_length([len(ids[i]) + room for i in members], batch_tokens)
        batches += [[members[j] for j in batch] for batch in chosen]
    with evaluating(model), _own_defaults(model):
        for batch in tracked(batches, "generating", shown=progress):
            rows, own = [ids[i] for i in batch], [drawn[i] for i in batch]
            outputs = _generate(model, tokenizer, rows, own, sampling, stop_tokens, rooms[batch[0]])
            for i, output in zip(batch, outputs, strict=True):
                answers[i] = _text(tokenizer, output, sampling, stop_tokens)
    return answers


def stream_text(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling, *, stop_tokens: Sequence[int]
) -> Iterator[str]:
    """The answer to one prompt, piece by piece; the pieces together are what `generate_texts` returns.

    A piece is held back while it ends in half a character or in what may become a stop text. Closing the iterator stops
    the model after its current token.
    """
    ids = _encode(model, tokenizer, [prompt], sampling)
    tokens: queue.Queue[int | BaseException | None] = queue.Queue()
    closed = threading.Event()

    def work() -> None:
        end: BaseException | None = None
        try:
            with evaluating(model), _own_defaults(model):
                room = _rooms(model, ids, sampling)[0]
                _generate(model, tokenizer, ids, [0], sampling, stop_tokens, room, TokenQueue(tokens), closed)
        except BaseException as error:  # handed over to the reader, who raises it
            end = error
        tokens.put(end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    pieces = Pieces(tokenizer, sampling.stop)
    try:
        while isinstance(token := tokens.get(), int):
            if token not in stop_tokens and (piece := pieces.add(token)):
                yield piece
        if token is not None:
            raise token
        if rest := pieces.rest():
            yield rest
    finally:
        closed.set()
        thread.join()


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of at most `batch_tokens` after padding, longest first: memory runs out at once or never."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def tracked(items: Sequence[T], label: str, *, shown: bool, unit: str = "batches") -> Iterator[T]:
    """The items, with a progress bar on a terminal and a line at each quarter elsewhere, where they are called `unit`."""
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, description=label, console=console, transient=True)
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done * 4 // len(items) > (done - 1) * 4 // len(items):
            console.print(f"{label}: {done} of {len(items)} {unit}")


def _encode(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], sampling: Sampling) -> list[list[int]]:
    """Token ids of the prompts, cut where the model's context is too short."""
    if not prompts:
        return []
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    for i, row in enumerate(ids):
        if not row and tokenizer.bos_token_id is None:
            raise UsageError(f"Expected prompt {i + 1} to have at least one token, got an empty text; type a prompt.")
        ids[i] = row or [tokenizer.bos_token_id]
    context = _context(model)
    if context is None:
        return ids
    limit = context - min(sampling.max_new_tokens, context // 2)
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    for i in long:
        ids[i] = [ids[i][0], *ids[i][len(ids[i]) - limit + 1 :]]
    if long:
        log.warning(
            "%d of %d prompts were cut on the left to %d tokens, so that an answer fits into the model's context of %d.",
            len(long), len(ids), limit, context,
        )  # fmt: skip
    return ids


def _context(model: Any) -> int | None:
    """Positions that the model has, less those that a prompt-learning adapter takes; None: no limit is known."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    context = getattr(config, "max_position_embeddings", None)
    taken = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
    return context - taken if isinstance(context, int) and context > taken + 1 else None


def _rooms(model: Any, ids: Sequence[list[int]], sampling: Sampling) -> list[int]:
    """How many tokens each answer may have."""
    context = _context(model)
    return [sampling.max_new_tokens if context is None else min(sampling.max_new_tokens, context - len(row)) for row in ids]


@contextlib.contextmanager
def _own_defaults(model: Any) -> Iterator[None]:
    """Set the model folder's generation defaults aside: `generate` would fill them in wherever we say nothing."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = base.generation_config
    base.generation_config = cast("Any", GenerationConfig)()
    try:
        yield
    finally:
        base.generation_config = kept


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    numbers: Sequence[int],
    sampling: Sampling,
    stop_tokens: Sequence[int],
    room: int,
    streamer: Any = None,
    closed: threading.Event | None = None,
) -> list[list[int]]:
    """Token ids of the answers to one batch; what follows a stop token is padding."""
    width = max(len(row) for row in ids)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    device = next(model.parameters()).device
    starts = torch.tensor([width - len(row) for row in ids], device=device)
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device)
    criteria: list[StoppingCriteria] = []
    if sampling.stop:
        criteria.append(StopText(tokenizer, sampling.stop, width))
    if closed is not None:
        criteria.append(Closed(closed))
    config = cast("Any", GenerationConfig)(
        max_new_tokens=room,
        do_sample=False,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=list(stop_tokens) or None,
    )
    with torch.no_grad(), warnings.catch_warnings():
        # Peft says so in every call with a soft prompt; see `generate_texts` for what we do about it.
        warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient tuning")
        output = model.generate(
            input_ids=input_ids,
            # Positions follow from the mask inside `generate`, for the families that have positions at all.
            attention_mask=(torch.arange(width, device=device) >= starts[:, None]).long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([Chooser(sampling, starts, width, numbers)]),
            stopping_criteria=StoppingCriteriaList(criteria),
            streamer=streamer,
        )
    answers: list[list[int]] = output[:, width:].tolist()
    return answers


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], sampling: Sampling, stop_tokens: Sequence[int]) -> str:
    """The answer's text, up to the first stop token or stop text."""
    end = next((i for i, token in enumerate(ids) if token in stop_tokens), len(ids))
    text = decode(tokenizer, ids[:end])
    return text[: min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=len(text))]
