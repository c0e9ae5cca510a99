"""How much a method can learn on a model, set against what the rows hold.

A trained parameter holds about 2 bits (Allen-Zhu and Li 2024, arXiv:2404.05405, result 1); a token of an answer brings
about one bit that a pretrained model does not know (Schulman et al. 2025, "LoRA Without Regret"). Both are rules of thumb:
the advice that follows from them is one of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0
RANKS = (8, 16, 32, 64, 128, 256)
"""Ranks that are advised."""
_NOT_ADAPTED = ("embed", "wte", "wpe", "lm_head")


@dataclass(frozen=True)
class Capacity:
    """The sizes of a model that decide what it can take in."""

    parameters: int
    per_rank: int
    """Parameters that one more of LoRA's rank trains, on all linear layers: the sum of their widths."""

    def tokens(self, parameters: int) -> int:
        """Tokens with a loss that so many trained parameters have room for."""
        return int(parameters * BITS_PER_PARAMETER / BITS_PER_TOKEN)

    def rank_for(self, tokens: int) -> int | None:
        """The smallest of `RANKS` with room for so many tokens; None: more than the largest has."""
        return next((rank for rank in RANKS if self.tokens(rank * self.per_rank) >= tokens), None)

    def advice(self, rows: int, tokens: int) -> list[str]:
        """What the rows ask of a method, and how many rows like these it could take.

        Args:
            rows: examples.
            tokens: those with a loss in all of them.
        """
        if not (rows and tokens and self.per_rank):
            return []
        rank = self.rank_for(tokens)
        a_row = max(1, tokens // rows)
        if rank is None:
            out = [
                f"{tokens:,} tokens with a loss are more than LoRA of rank {RANKS[-1]} has room for on this model"
                f" ({self.parameters:,} parameters): train all of it (--method full), or a larger model."
            ]
        else:
            out = [
                f"{tokens:,} tokens with a loss fit into LoRA of rank {rank} on this model ({rank * self.per_rank:,}"
                f" parameters, about {BITS_PER_PARAMETER:g} bits each): that rank or one above."
            ]
        limits = [f"rank {r} about {self.tokens(r * self.per_rank) // a_row:,}" for r in (RANKS[0], RANKS[1], RANKS[3])]
        full = self.tokens(self.parameters) // a_row
        return [*out, f"Rows like these that have room: LoRA {', '.join(limits)}; full training about {full:,}."]


def capacity_of(folder: Path) -> Capacity | None:
    """The capacity of a model whose weights lie in a folder as safetensors, by their shapes alone; None without any."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    parameters = per_rank = 0
    for path in files:
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no mapping
                shape = weights.get_slice(name).get_shape()
                size = 1
                for width in shape:
                    size *= width
                parameters += size
                if len(shape) == 2 and not any(part in name for part in _NOT_ADAPTED):
                    per_rank += sum(shape)
    return Capacity(parameters, per_rank) if parameters else None
