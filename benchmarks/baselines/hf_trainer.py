"""Transformers' Trainer (peft for an adapter): dynamic padding, grouped by length; the fastest known peer on a CPU.

LoRA: bf16 base weights, float32 adapter, bf16 autocast; with `--pure` no autocast either. Full fine-tuning: float32 weights
under bf16 autocast; with `--pure` weights, gradients and moments in bf16, no autocast. Which is faster depends on the length
of the rows, so a suite runs both. Without fast bfloat16 all of it is float32.
"""

from __future__ import annotations

import sys

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trained import low, trained_model


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    setting, folder = arguments()
    pure = "--pure" in sys.argv
    options = setting.options
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    rows = Dataset.from_list(setting.encoded("train", tokenizer))
    model = trained_model(setting, pure)
    config = TrainingArguments(
        output_dir=str(folder / "trainer"), use_cpu=True, bf16=low(options) and not pure,
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=options["batch_size"], num_train_epochs=1, learning_rate=options["learning_rate"],
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
        dataloader_pin_memory=False, logging_steps=1000, save_strategy="no", report_to="none", disable_tqdm=True,
        seed=options["seed"],
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    Trainer(model=model, args=config, train_dataset=rows, data_collator=collator, processing_class=tokenizer).train()
    model.save_pretrained(str(folder / "trained"))
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
