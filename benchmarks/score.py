"""What any contestant's adapter or model makes of the held-out rows, in plain torch and float32, with the same code for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import Encoded, Setting


def score(setting: Setting, trained: Path | None) -> dict[str, float]:
    """The setting's measures of quality.

    Args:
        setting: what is scored on.
        trained: folder of an adapter or of a whole model; None: the setting's own model.
    """
    return heldout_pairs(setting, trained) if setting.pairs else {"heldout_loss": heldout_loss(setting, trained)}


def heldout_loss(setting: Setting, trained: Path | None) -> float:
    """Mean negative log-likelihood per answer token over the held-out rows."""
    rows = setting.encoded("heldout", tokenizer_of(setting))
    return -sum(answer_logps(setting, trained, rows)) / sum(label >= 0 for row in rows for label in row["labels"][1:])


def heldout_pairs(setting: Setting, trained: Path | None) -> dict[str, float]:
    """The DPO loss of the held-out pairs, and the share of them on whose right side the model stands, a tie being half right.

    With h = log pi(w) - log ref(w) - (log pi(l) - log ref(l)) for a better answer w and a worse one l, sums over their tokens
    and the setting's own model as ref, the loss is the mean of -log sigma(beta h), eq. 7 of Rafailov et al. 2023
    (arXiv:2305.18290), and h > 0 is the right side. Nothing trained: h = 0, a loss of log 2 and an accuracy of 0.5.
    """
    rows = setting.encoded("heldout", tokenizer_of(setting))
    policy, reference = (torch.tensor(answer_logps(setting, of, rows)) for of in (trained, None))
    gained = policy - reference
    h = gained[::2] - gained[1::2]
    return {
        "heldout_dpo_loss": float(-torch.nn.functional.logsigmoid(setting.options["beta"] * h).mean()),
        "heldout_accuracy": float(((h > 0).float() + 0.5 * (h == 0)).mean()),
    }


def answer_logps(setting: Setting, trained: Path | None, rows: list[Encoded]) -> list[float]:
    """Log-probability (nats) of each row's answer, summed over its tokens, one row at a time."""
    model = load(setting, trained)
    found = []
    with torch.inference_mode():
        for row in rows:
            labels = torch.tensor(row["labels"][1:])
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            found.append(-float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
    return found


def load(setting: Setting, trained: Path | None) -> Any:
    """The model in float32, with its adapter where `trained` holds one."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = trained is not None and (trained / "adapter_config.json").is_file()
    whole = setting.model if trained is None or adapted else trained
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    if adapted:
        model = PeftModel.from_pretrained(model, str(trained))
    return model.eval()


def tokenizer_of(setting: Setting) -> Any:
    """The setting's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(setting.model)


if __name__ == "__main__":
    chosen = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps(score(Setting.load(sys.argv[1]), chosen)))
