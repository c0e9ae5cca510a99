"""A LightningModule as the tutorials write it: random batches, dynamic padding, full logits, bf16-mixed.

Frozen weights are bf16, those that train float32; without fast bfloat16 all is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning
import torch

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.plain_torch import collate
from benchmarks.baselines.trained import low, trained_model

if TYPE_CHECKING:
    from benchmarks.setting import Setting


class Tutorial(lightning.LightningModule):
    """The model's own loss, AdamW, a linear schedule."""

    def __init__(self, setting: Setting, steps: int) -> None:
        super().__init__()
        self.model = trained_model(setting)
        self.learning_rate = setting.options["learning_rate"]
        self.steps = steps

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """The mean loss of one batch."""
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW on what trains, decayed linearly to zero."""
        # Not fused: Lightning refuses to clip gradients of a fused optimiser in mixed precision.
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Train one epoch and save what was trained."""
    clock = Clock()
    from transformers import AutoTokenizer

    setting, folder = arguments()
    options = setting.options
    lightning.seed_everything(options["seed"])
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    rows = setting.encoded("train", tokenizer)
    loader: Any = torch.utils.data.DataLoader(
        rows,  # type: ignore[arg-type]  # a list is a map-style data set
        batch_size=options["batch_size"], shuffle=True, collate_fn=lambda chosen: collate(chosen, tokenizer.pad_token_id),
    )  # fmt: skip
    module = Tutorial(setting, len(rows) // options["batch_size"])
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision="bf16-mixed" if low(options) else "32-true",
        gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loader)
    module.model.save_pretrained(folder / "trained")
    clock.write(folder, setting, folder / "trained")


if __name__ == "__main__":
    main()
