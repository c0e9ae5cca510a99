"""Tokens beyond a model's own: rows for them, and whether a tokenizer can take them at all."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor


def with_tokens(tokenizer: Any, texts: Sequence[str]) -> Any:
    """A copy of the tokenizer in which each of these texts is a token, wherever it stands."""
    from transformers import AddedToken

    grown = copy.deepcopy(tokenizer)
    # Not normalised: a normaliser that marks the beginning of a text would mark that of the token.
    grown.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return grown


def disturbing(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Those of the texts that, as tokens, would change what a text with them is decoded to.

    Many tokenizers decode tokens that were added by the table of their bytes, where a letter beyond ASCII is another byte, and
    some put a space after each added token.
    """
    from lightning_ft.decoding import decode

    grown = with_tokens(tokenizer, texts)

    def read(one: Any, text: str) -> str:
        return decode(one, one(text, add_special_tokens=False)["input_ids"])

    probes = [f"a {text.strip()}, a{text}s{text}.{text}" for text in texts]
    return [text for text, probe in zip(texts, probes, strict=True) if read(grown, probe) != read(tokenizer, probe)]


def new_tokens(before: Any, after: Any) -> dict[int, str]:
    """Ids and texts of the tokens that one tokenizer has more than another."""
    known = before.get_vocab()
    return dict(sorted((number, text) for text, number in after.get_vocab().items() if text not in known))


def grow(model: Any, before: Any, after: Any, fresh: Collection[int] = ()) -> None:
    """Give a model a row for every token of a tokenizer, in the embedding, in a head of its own and in the head's bias.

    A new row is the mean of the rows of its pieces, the tokens that stood for its text before.

    Args:
        model: A plain one; it is left as it is where it has the rows and none is fresh.
        before: The tokenizer that the model knows.
        after: The one with more tokens.
        fresh: Tokens whose rows start anew even where the model has them to spare.
    """
    import torch

    spare = model.get_input_embeddings().num_embeddings
    if not fresh and len(after) <= spare:
        return
    tokens = {number: text for number, text in new_tokens(before, after).items() if number >= spare or number in fresh}
    if not tokens:
        return
    if max(tokens) >= spare:
        model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
    pieces = {number: before(text, add_special_tokens=False)["input_ids"] for number, text in tokens.items()}
    head = model.get_output_embeddings()
    matrices: list[Tensor] = [model.get_input_embeddings().weight]
    matrices += [] if head is None or head.weight is matrices[0] else [head.weight]
    matrices += [] if getattr(head, "bias", None) is None else [head.bias]
    with torch.no_grad():
        for matrix in matrices:
            for number, parts in pieces.items():
                matrix[number] = matrix[parts].float().mean(0).to(matrix.dtype)
