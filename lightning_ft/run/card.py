"""What lies beside the weights of a saved model: tokenizer, template and a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.render import Template


class ModelWriter:
    """Writes a model so that `AutoPeftModelForCausalLM` or `AutoModelForCausalLM` loads the folder alone.

    Args:
        model: Returns the model to write (it is attached only when training begins).
        tokenizer: Saved with it.
        template: Saved as the tokenizer's chat template.
        config: For the card.
        facts: Further lines of the card.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, template: Template, config: TrainingConfig, facts: dict[str, str]
    ) -> None:
        self.model, self.tokenizer, self.template, self.config, self.facts = model, tokenizer, template, config, facts

    def __call__(self, folder: Path) -> None:
        """Write everything into `folder`."""
        model = self.model()
        model.save_pretrained(str(folder))
        self.template.install(self.tokenizer)
        self.tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(self._card(adapter=(folder / "adapter_config.json").is_file()), encoding="utf-8")

    def _card(self, *, adapter: bool) -> str:
        kind, loader = ("adapter", "peft") if adapter else ("model", "transformers")
        cls = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
        head = {"base_model": self.config.model, "library_name": loader, "pipeline_tag": "text-generation"}
        front = yaml.safe_dump({**head, "tags": ["lightning-ft"]}, sort_keys=False, allow_unicode=True)
        lines = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        return (
            f"---\n{front}---\n\n"
            f"# Fine-tuned {kind} of {self.config.model}\n\n"
            f"| | |\n|---|---|\n{lines}\n\nThe chat template it was trained with is in the tokenizer's files.\n\n"
            f"```python\nfrom {loader} import {cls}\n\nmodel = {cls}.from_pretrained('PATH_OF_THIS_FOLDER')\n```\n"
        )
