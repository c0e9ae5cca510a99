"""TRL's SFTTrainer at its best plain setting on a CPU: bf16 autocast, grouped by length, no recomputed activations.

Frozen weights are bf16, those that train float32; without fast bfloat16 all is float32. Its loss is its own default (`nll`,
which never makes the full logits). Prompt-completion rows put the loss on the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.trained import adapter, dtype, is_full, low

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.setting import Setting


def prompt_completion(setting: Setting) -> Any:
    """The training rows as TRL's data set of questions and answers."""
    from datasets import Dataset

    return Dataset.from_list([
        {"prompt": messages[:-1], "completion": messages[-1:]} for messages in setting.rows("train")
    ])  # fmt: skip


def configured(setting: Setting, folder: Path) -> dict[str, Any]:
    """What both of TRL's trainers that are measured take."""
    options = setting.options
    return {
        "output_dir": str(folder / "trainer"), "use_cpu": True, "bf16": low(options),
        "model_init_kwargs": {"dtype": dtype(options)},
        "train_sampling_strategy": "group_by_length", "gradient_checkpointing": False,
        "max_length": options["max_length"], "per_device_train_batch_size": options["batch_size"], "num_train_epochs": 1,
        "learning_rate": options["learning_rate"], "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "optim": "adamw_torch_fused", "dataloader_pin_memory": False, "logging_steps": 1000,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": options["seed"],
    }  # fmt: skip


def train(trainer: type, config: Any, rows: Any, setting: Setting, folder: Path) -> Path:
    """Train one epoch; the folder of what was trained."""
    from transformers import AutoTokenizer

    options = setting.options
    made = trainer(
        model=setting.model, args=config, train_dataset=rows, peft_config=None if is_full(options) else adapter(options),
        processing_class=AutoTokenizer.from_pretrained(setting.model),
    )  # fmt: skip
    made.train()
    made.model.save_pretrained(folder / "trained")
    return folder / "trained"


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from trl import SFTConfig, SFTTrainer

    setting, folder = arguments()
    config = SFTConfig(**configured(setting, folder), completion_only_loss=True)
    clock.write(folder, setting, train(SFTTrainer, config, prompt_completion(setting), setting, folder))


if __name__ == "__main__":
    main()
