"""Transformers' Trainer with peft: bf16 weights, dynamic padding, grouped by length; the fastest known peer on a CPU.

With `--pure` the computation has no autocast either. Which of the two is faster depends on the length of the rows, so a
suite runs both.
"""

from __future__ import annotations

import sys

from benchmarks.baselines.measure import Clock, arguments


def main() -> None:
    """Train one epoch and save the adapter."""
    clock = Clock()
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    setting, folder = arguments()
    options = setting.options
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    rows = Dataset.from_list(setting.encoded("train", tokenizer))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16),
        LoraConfig(
            task_type="CAUSAL_LM", r=options["rank"], lora_alpha=options["alpha"], lora_dropout=0.0, target_modules="all-linear"
        ),
    )
    config = TrainingArguments(
        output_dir=str(folder / "trainer"), use_cpu=True, bf16="--pure" not in sys.argv,
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=options["batch_size"], num_train_epochs=1, learning_rate=options["learning_rate"],
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
        dataloader_pin_memory=False, logging_steps=1000, save_strategy="no", report_to="none", disable_tqdm=True,
        seed=options["seed"],
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    Trainer(model=model, args=config, train_dataset=rows, data_collator=collator, processing_class=tokenizer).train()
    model.save_pretrained(str(folder / "adapter"))
    clock.write(folder, setting, folder / "adapter")


if __name__ == "__main__":
    main()
