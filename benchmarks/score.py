"""The held-out loss of any contestant's adapter or model, in plain torch and float32, with the same code for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.setting import Setting


def heldout_loss(setting: Setting, trained: Path | None) -> float:
    """Mean negative log-likelihood per answer token over the held-out rows, one row at a time.

    Args:
        setting: what is scored on.
        trained: folder of an adapter or of a whole model; None: the setting's own model.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    adapted = trained is not None and (trained / "adapter_config.json").is_file()
    whole = setting.model if trained is None or adapted else trained
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    if adapted:
        model = PeftModel.from_pretrained(model, str(trained))
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in setting.encoded("heldout", tokenizer):
            labels = torch.tensor(row["labels"][1:])
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels >= 0).sum())
    return total / count


if __name__ == "__main__":
    chosen = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print(json.dumps({"heldout_loss": heldout_loss(Setting.load(sys.argv[1]), chosen)}))
