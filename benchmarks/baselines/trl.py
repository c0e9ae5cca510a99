"""TRL's SFTTrainer at its best plain setting on a CPU: bf16 autocast, grouped by length, no recomputed activations.

Frozen weights are bf16, those that train float32. Its loss is its own default (`nll`, which never makes the full logits).
Prompt-completion rows put the loss on the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trained import adapter, dtype, is_full

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def prompt_completion(setting: Setting) -> Any:
    """The training rows as TRL's data set of questions and answers."""
    from datasets import Dataset

    return Dataset.from_list([
        {"prompt": messages[:-1], "completion": messages[-1:]} for messages in setting.rows("train")
    ])  # fmt: skip


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    setting, folder = arguments()
    options = setting.options
    config = SFTConfig(
        output_dir=str(folder / "trainer"), use_cpu=True, bf16=True, model_init_kwargs={"dtype": dtype(options)},
        train_sampling_strategy="group_by_length", gradient_checkpointing=False, completion_only_loss=True,
        max_length=options["max_length"], per_device_train_batch_size=options["batch_size"], num_train_epochs=1,
        learning_rate=options["learning_rate"], lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0,
        max_grad_norm=1.0, optim="adamw_torch_fused", dataloader_pin_memory=False, logging_steps=1000,
        save_strategy="no", report_to="none", disable_tqdm=True, seed=options["seed"],
    )  # fmt: skip
    trainer = SFTTrainer(
        model=setting.model, args=config, train_dataset=prompt_completion(setting),
        peft_config=None if is_full(options) else adapter(options),
        processing_class=AutoTokenizer.from_pretrained(setting.model),
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(folder / "trained")
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
