"""TRL's SFTTrainer at its best plain setting on a CPU: bf16 weights, grouped by length, no recomputed activations.

Its loss is its own default (`nll`, which never makes the full logits). Prompt-completion rows put the loss on the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.baselines.measure import Clock, arguments

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def prompt_completion(setting: Setting) -> Any:
    """The training rows as TRL's data set of questions and answers."""
    from datasets import Dataset

    return Dataset.from_list([
        {"prompt": messages[:-1], "completion": messages[-1:]} for messages in setting.rows("train")
    ])  # fmt: skip


def adapter(options: dict[str, Any]) -> Any:
    """LoRA on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=options["rank"], lora_alpha=options["alpha"], lora_dropout=0.0, target_modules="all-linear"
    )


def main() -> None:
    """Train one epoch and save the adapter."""
    clock = Clock()
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    setting, folder = arguments()
    options = setting.options
    config = SFTConfig(
        output_dir=str(folder / "trainer"), use_cpu=True, bf16=True, model_init_kwargs={"dtype": "bfloat16"},
        train_sampling_strategy="group_by_length", gradient_checkpointing=False, completion_only_loss=True,
        max_length=options["max_length"], per_device_train_batch_size=options["batch_size"], num_train_epochs=1,
        learning_rate=options["learning_rate"], lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0,
        max_grad_norm=1.0, optim="adamw_torch_fused", dataloader_pin_memory=False, logging_steps=1000,
        save_strategy="no", report_to="none", disable_tqdm=True, seed=options["seed"],
    )  # fmt: skip
    trainer = SFTTrainer(
        model=setting.model, args=config, train_dataset=prompt_completion(setting), peft_config=adapter(options),
        processing_class=AutoTokenizer.from_pretrained(setting.model),
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")
    clock.write(folder, setting, folder / "adapter")


if __name__ == "__main__":
    main()
