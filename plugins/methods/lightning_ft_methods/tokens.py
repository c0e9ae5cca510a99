"""Which rows of the embedding belong to tokens that a user names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_ft.backbone import tokenizer_of
from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def outer_paths(model: nn.Module) -> list[str]:
    """Where the model has its input embedding and its output head, which may share one matrix."""
    plain: Any = model
    outer = {id(plain.get_input_embeddings()), id(plain.get_output_embeddings())}
    return [path for path, module in plain.named_modules() if id(module) in outer]


def token_rows(model: nn.Module, tokens: Sequence[int | str]) -> dict[str, list[int]]:
    """The rows by the end of the module's name: of the embedding, and of the output head where it has a matrix of its own.

    Raises:
        UsageError: a token is not in the vocabulary, or named twice.
    """
    plain: Any = model
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    rows = embedding.num_embeddings
    ids: list[int] = []
    vocabulary: dict[str, int] | None = None
    for token in tokens:
        if isinstance(token, str):
            vocabulary = tokenizer_of(plain).get_vocab() if vocabulary is None else vocabulary
            number = vocabulary.get(token)
        else:
            number = token
        if number is None or not 0 <= number < rows:
            raise UsageError(
                f"Expected --method.trainable_tokens to name tokens of the model's vocabulary ({rows:,}), as its tokenizer "
                f"writes them, or their ids; got {token!r}."
            )
        if number in ids:
            raise UsageError(f"Expected --method.trainable_tokens to name a token once; got {token!r} again.")
        ids.append(number)
    modules = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    names = {id(module): name.rpartition(".")[2] for name, module in plain.named_modules()}
    return {names[id(module)]: list(ids) for module in modules}
