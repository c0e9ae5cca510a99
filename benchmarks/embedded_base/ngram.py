"""The baseline of the embedded base model: a 5-gram model of the same training text, in bits per held-out byte.

Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3; discounts by their eq. 17), over the tokens of the
model's own tokenizer and, for comparison, over bytes. With c the count in the highest order and the number of distinct left
neighbours below it, and D(c) the discount of counts 1, 2 and 3 or more:

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + gamma(h) p(w | h'),    h' = h without its oldest symbol
    gamma(h) = sum of D(c(h w)) over all w seen after h, divided by c(h)

and p = 1/V below the unigrams. The first token of a piece is given and not scored, here as in `card.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable


ORDER = 5
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The counts of one order, as sorted arrays."""

    keys: Ints
    """(N,) n-grams, each as one number in base V."""
    counts: Ints
    """(N,) count of each n-gram (raw in the highest order, left neighbours below)."""
    contexts: Ints
    """(C,) the contexts, n-grams without their last symbol."""
    totals: Ints
    """(C,) sum of the counts after each context."""
    gammas: Floats
    """(C,) share that each context leaves to the lower order."""
    discounts: Floats
    """(4,) discount of counts 0, 1, 2 and 3 or more."""


def discounts_of(counts: Ints) -> Floats:
    """Modified Kneser-Ney discounts from the numbers of n-grams seen once to four times.

    Text too small to have all four gets a half for each count, so that no probability is zero.
    """
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not n1 * n2 * n3 * n4:
        return np.array([0, 0.5, 1, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.asarray(np.clip(found, 0, [0, 1, 2, 3]), dtype=np.float64)


def level(keys: Ints, counts: Ints, vocabulary: int) -> Level:
    """The level of sorted n-grams with their counts."""
    discounts = discounts_of(counts)
    contexts, start = np.unique(keys // vocabulary, return_index=True)
    totals = np.add.reduceat(counts, start)
    gammas = np.add.reduceat(discounts[np.minimum(counts, 3)], start) / totals
    return Level(keys, counts, contexts, totals, gammas, discounts)


def grams(documents: list[Ints], order: int, vocabulary: int, start: int) -> Ints:
    """The n-gram that ends at each symbol of each document, contexts filled up with `start` at the beginning."""
    pad = np.full(order - 1, start, dtype=np.int64)
    stream = np.concatenate([part for document in documents for part in (pad, document)])
    is_text = np.concatenate([np.full(n, flag) for d in documents for n, flag in ((order - 1, False), (len(d), True))])
    key = np.zeros(len(stream) - order + 1, dtype=np.int64)
    for offset in range(order):
        key = key * vocabulary + stream[offset : offset + len(key)]
    return np.asarray(key[is_text[order - 1 :]], dtype=np.int64)


def train(documents: list[Ints], vocabulary: int, start: int) -> list[Level]:
    """Levels 1 to `ORDER`."""
    keys, counts = np.unique(grams(documents, ORDER, vocabulary, start), return_counts=True)
    levels = [level(keys, counts, vocabulary)]
    for order in range(ORDER - 1, 0, -1):
        keys, counts = np.unique(keys % vocabulary**order, return_counts=True)
        levels.insert(0, level(keys, counts, vocabulary))
    return levels


def find(sorted_keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Positions of the wanted keys, and which of them are there."""
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return at, sorted_keys[at] == wanted


def probabilities(levels: list[Level], keys: Ints, vocabulary: int) -> Floats:
    """p(last symbol | the others) of each 5-gram."""
    p = np.full(len(keys), 1 / vocabulary)
    for order, one in enumerate(levels, start=1):
        gram = keys % vocabulary**order
        where, known = find(one.contexts, gram // vocabulary)
        at, seen = find(one.keys, gram)
        count = np.where(seen, one.counts[at], 0)
        direct = np.maximum(count - one.discounts[np.minimum(count, 3)], 0) / one.totals[where]
        p = np.where(known, direct + one.gammas[where] * p, p)
    return p


def bits_per_byte(
    rows: dict[str, list[dict[str, str]]],
    encode: Callable[[str], list[int]],
    size: Callable[[int], int],
    vocabulary: int,
    start: int,
) -> dict[str, float]:
    """Held-out bits per byte in all (`all`) and by source; `size` is the number of bytes of a symbol."""
    documents = {name: [np.array(encode(row["text"]), dtype=np.int64) for row in part] for name, part in rows.items()}
    levels = train(documents["train"], vocabulary, start)
    sizes = np.array([size(symbol) for symbol in range(vocabulary)])
    held_out = documents["heldout"]
    bits = -np.log2(probabilities(levels, grams(held_out, ORDER, vocabulary, start), vocabulary))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    at = 0
    for row, document in zip(rows["heldout"], held_out, strict=True):
        for name in ("all", row["source"]):
            sums[name][0] += float(bits[at + 1 : at + len(document)].sum())
            sums[name][1] += float(sizes[document[1:]].sum())
        at += len(document)
    return {name: round(total / length, 4) for name, (total, length) in sums.items()}


def main(argv: list[str] | None = None) -> int:
    """Train on `--data`, score its held-out part, write the figures to `--output`."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("ngram.json"), help="file to write")
    args = parser.parse_args(argv)
    rows = {
        name: [json.loads(line) for line in (args.data / "text" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "heldout")
    }
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    # Byte-level BPE spells a byte as one character, so a token has as many bytes as its spelling has characters.
    spelled = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    began = time.perf_counter()
    result = {
        "model": f"{ORDER}-gram, interpolated modified Kneser-Ney",
        "bits_per_byte": {
            "tokens": bits_per_byte(
                rows,
                lambda text: tokenizer(text, verbose=False)["input_ids"],
                lambda i: len(spelled[i]),
                len(tokenizer),
                tokenizer.bos_token_id,
            ),
            "bytes": bits_per_byte(rows, lambda text: list(text.encode()), lambda _: 1, 257, 256),
        },
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1), f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
