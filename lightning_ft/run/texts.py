"""What makes tokens of rows: tokenizer, chat template and limits. Of a model nothing is needed for it but its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_ft.backbone import longest_row
from lightning_ft.data.encode import Encoder
from lightning_ft.data.render import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """How the texts of a run become rows of tokens."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    encoder: Encoder
    """With both, and with the limit of a row."""
    positions: int
    """Tokens of a row that the model has places for."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int | None, positions: int) -> Texts:
        """Those of a model's tokenizer.

        Args:
            tokenizer: Of the model.
            template: As `--template`.
            max_length: As `--max_length`.
            positions: As `backbone.positions_of` counts them.

        Raises:
            UsageError: a template that is none, or more tokens than positions.
        """
        chosen = Template.resolve(template, tokenizer)
        longest = longest_row(max_length, positions, tokenizer)
        return cls(tokenizer, chosen, Encoder(tokenizer, chosen, longest, positions), positions)
