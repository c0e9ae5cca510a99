"""Lightning's words for its Trainer's arguments that are options here, and the arguments that a run decides itself."""

from __future__ import annotations

from typing import Any

ALIASES = {
    "max_epochs": "epochs", "max_steps": "max_steps", "precision": "precision", "strategy": "strategy", "devices": "devices",
    "gradient_clip_val": "max_grad_norm", "accumulate_grad_batches": "accumulate", "log_every_n_steps": "log_every",
    "val_check_interval": "eval_every",
}  # fmt: skip
"""Lightning's words for everyday options."""
VALUES: dict[str, dict[str, Any]] = {
    "precision": {
        "32": "fp32", "32-true": "fp32", "bf16": "bf16", "bf16-mixed": "bf16", "16": "fp16", "16-mixed": "fp16",
    },
    "max_steps": {"-1": None},
    "max_grad_norm": {"none": 0.0, "None": 0.0},
}  # fmt: skip
"""Values that Lightning spells differently, by our option."""
_SCHEDULE = "all steps are planned before the first one, by --epochs or --max_steps"
DECIDED = {
    "accelerator": "a run takes a GPU where it sees one, and CUDA_VISIBLE_DEVICES= hides them",
    "check_val_every_n_epoch": "--eval_every counts steps",
    "enable_checkpointing": "--save_every 0 leaves checkpoints out",
    "fast_dev_run": "--max_steps 1 is the shortest run",
    "gradient_clip_algorithm": "gradients are clipped by their norm, with --max_grad_norm",
    "limit_train_batches": _SCHEDULE,
    "min_epochs": _SCHEDULE,
    "min_steps": _SCHEDULE,
    "num_sanity_val_steps": "--preflight tries steps before training",
    "overfit_batches": _SCHEDULE,
    "reload_dataloaders_every_n_epochs": _SCHEDULE,
    "use_distributed_sampler": "every process is dealt its part of each planned step",
}
"""What a run sets by itself, which another value would break without a word, with what decides it."""
