"""DPO in plain torch, as a careful user would write it: `plain_torch.py` on pairs, both answers in one padded batch.

What the reference makes of the pairs is computed before the first step, by the model without its adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.plain_torch import batches_of, collate, descend
from benchmarks.baselines.trained import low, trained_model

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def answer_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows,) log-probability of each answer, summed over its tokens; the head is computed where there are answers."""
    labels = batch["labels"][:, 1:]
    rows, positions = (labels >= 0).nonzero(as_tuple=True)
    core = model.get_base_model()
    hidden = core.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0]
    losses = cross_entropy(core.lm_head(hidden[rows, positions]).float(), labels[rows, positions], reduction="none")
    return torch.zeros(len(labels)).index_add(0, rows, -losses)


def train(setting: Setting) -> Any:
    """The model behind one epoch."""
    from transformers import AutoTokenizer

    options = setting.options
    torch.manual_seed(options["seed"])
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    pairs = batches_of(
        setting.encoded_pairs("train", tokenizer),
        lambda pair: max(len(text["input_ids"]) for text in pair),
        options["batch_size"],
        options["seed"],
    )
    model = trained_model(setting)
    batches = [collate([text for pair in batch for text in pair], tokenizer.pad_token_id) for batch in pairs]
    with model.disable_adapter(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low(options)):
        references = [answer_logps(model, batch) for batch in batches]

    def loss_of(batch: tuple[dict[str, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        rows, reference = batch
        gained = answer_logps(model, rows) - reference
        return -logsigmoid(options["beta"] * (gained[::2] - gained[1::2])).mean()

    descend(model, list(zip(batches, references, strict=True)), loss_of, options)
    return model


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    setting, folder = arguments()
    train(setting).save_pretrained(folder / "trained")
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
