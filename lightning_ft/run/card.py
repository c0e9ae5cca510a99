"""What lies beside the weights of a saved model: tokenizer, template and a model card."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import yaml
from torch.distributed.tensor import DTensor

from lightning_ft.engine.model import base_model, evaluating
from lightning_ft.engine.sharding import gathered
from lightning_ft.loading import ADAPTER, BENEATH
from lightning_ft.quantization import loads_by_peft_alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lightning_ft.config import TrainingConfig
    from lightning_ft.data.render import Template
    from lightning_ft.quantization import Quantization


VECTORS = "prompt_embeddings"
"""peft's name in a saved adapter for the vectors of a soft prompt."""


class ModelWriter:
    """Writes a model so that `AutoPeftModelForCausalLM` or `AutoModelForCausalLM` loads the folder alone.

    Args:
        model: Returns the model to write (it is attached only when training begins).
        tokenizer: Saved with it.
        template: Saved as the tokenizer's chat template.
        config: For the card.
        facts: Further lines of the card.
        quantization: How the base is stored.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, template: Template, config: TrainingConfig, facts: dict[str, str],
        quantization: Quantization | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.template, self.config, self.facts = model, tokenizer, template, config, facts
        self.quantization = quantization

    def __call__(self, folder: Path, gathered: Mapping[str, Tensor] | None = None) -> None:
        """Write everything into `folder`.

        Args:
            folder: Is there.
            gathered: What `gather` returned, of a model that lies in several processes, or `copies`.
        """
        model = self.model()
        # An adapter of the embedding is its A and B; peft would add the frozen matrix itself.
        options: dict[str, Any] = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        vectors = gathered[VECTORS] if gathered and VECTORS in gathered else prompt_vectors(model)
        if gathered and vectors is None:
            options["state_dict"] = {**model.state_dict(), **gathered}
        saved = model if vectors is None else _as_saved(model, vectors)
        saved.save_pretrained(str(folder), **options)
        _in_order(folder, getattr(base_model(model).config, "_commit_hash", None))
        self.template.install(self.tokenizer)
        self.tokenizer.save_pretrained(str(folder))
        if not (folder / ADAPTER).is_file():
            note_stops(folder, self.template.stop_tokens(self.tokenizer))
        if self.quantization is not None:
            self.quantization.write(folder)
        stored = getattr(getattr(model, "config", None), "quantization_config", None)
        card = self._card(folder, stored, ours=stored is not None and not loads_by_peft_alone(model))
        (folder / "README.md").write_text(card, encoding="utf-8")

    def gather(self, *, keep: bool) -> dict[str, Tensor]:
        """Whole copies of what is saved of a model that lies in several processes; all of them have to ask.

        Args:
            keep: Whether this process gets them.
        """
        state = {name: value for name, value in self._saved().items() if isinstance(value, DTensor)}
        return gathered(state, keep=keep, owners=self._owners())

    def copies(self) -> dict[str, Tensor]:
        """What is saved of a model that is whole in this process, copied to the CPU, so that training may go on meanwhile."""
        vectors = prompt_vectors(self.model())
        if vectors is not None:
            return {VECTORS: vectors}
        return gathered(self._saved(), keep=True, owners=self._owners(), copy=True)

    def _saved(self) -> dict[str, Tensor]:
        """By its names in the model: of a peft model what its adapters save, of others everything."""
        model = self.model()
        whole: dict[str, Tensor] = model.state_dict()
        if not hasattr(model, "peft_config"):
            return whole
        from peft import get_peft_model_state_dict

        kept = {
            id(value)
            for name in model.peft_config
            for value in get_peft_model_state_dict(
                model, state_dict=whole, adapter_name=name, save_embedding_layers=False
            ).values()
        }
        return {name: value for name, value in whole.items() if id(value) in kept}

    def _owners(self) -> dict[str, int]:
        return {name: id(p) for name, p in self.model().named_parameters(remove_duplicate=False)}

    def _card(self, folder: Path, stored: Any, *, ours: bool) -> str:
        """The text.

        Args:
            folder: Of the model.
            stored: transformers' description of a quantised base.
            ours: Whether peft alone has no such adapter on that base.
        """
        adapter = (folder / ADAPTER).is_file()
        kind, loader = ("adapter", "peft") if adapter else ("model", "transformers")
        cls = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
        head = {"base_model": self.config.model, "library_name": loader, "pipeline_tag": "text-generation"}
        front = yaml.safe_dump({**head, "tags": ["lightning-ft"]}, sort_keys=False, allow_unicode=True)
        lines = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        first, more = f"from {loader} import {cls}", ""
        if stored is not None:
            kept = {key: value for key, value in stored.to_diff_dict().items() if key != "quant_method"}
            name = type(stored).__name__
            first, more = f"{first}\nfrom transformers import {name}", f", quantization_config={name}(**{kept})"
        beneath = ""
        if (folder / BENEATH / ADAPTER).is_file():
            beneath = (
                f"model.load_adapter('PATH_OF_THIS_FOLDER/{BENEATH}', adapter_name='{BENEATH}')\n"
                f"model.base_model.set_adapter(['{BENEATH}', 'default'])\n"
            )
        said, code = "", f"{first}\n\nmodel = {cls}.from_pretrained('PATH_OF_THIS_FOLDER'{more})\n{beneath}"
        if ours:
            said = (
                "peft alone has no such adapter on weights of so few bits: it loads this one on the base of full precision, "
                "which is another model. As it was trained:\n\n"
            )
            code = "from lightning_ft.loading import load\n\nmodel = load('PATH_OF_THIS_FOLDER').model\n"
        return (
            f"---\n{front}---\n\n"
            f"# Fine-tuned {kind} of {self.config.model}\n\n"
            f"| | |\n|---|---|\n{lines}\n\nThe chat template it was trained with is in the tokenizer's files.\n\n"
            f"{said}```python\n{code}```\n"
        )


def note_stops(folder: Path, stops: Sequence[int]) -> None:
    """Let a saved model end its answers where its template does, for whoever generates from the folder alone.

    Written past transformers, which would check every other value of the base's anew, and refuse some.

    Args:
        folder: Of a whole model.
        stops: Ids of the tokens, as `Template.stop_tokens` has them; none: as the base ends.
    """
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stops:
        values["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_order(folder: Path, commit: str | None) -> None:
    """Sort the names of layers in an adapter's config: peft keeps them in sets, whose order is another one each time.

    Args:
        folder: Of a model.
        commit: That of the hub's base, which the adapter has to be loaded upon; None where that is a folder.
    """
    for path in folder.rglob(ADAPTER):
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("target_modules", "exclude_modules", "modules_to_save"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        config["revision"] = commit
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _as_saved(model: Any, vectors: Tensor) -> Any:
    """A soft prompt's model as peft saves these vectors; it asks the model for them, whatever state it is given.

    It shares everything with `model` but what saving changes: peft switches the configs to inference while it writes them,
    where a step that runs meanwhile would take the saved vectors for the encoder's.
    """
    shell = copy.copy(model)
    shell._peft_config = {name: copy.copy(config) for name, config in model._peft_config.items()}
    object.__setattr__(shell, "get_prompt_embedding_to_save", lambda adapter_name: vectors)  # past nn.Module's own
    return shell


def prompt_vectors(model: Any) -> Tensor | None:
    """A soft prompt as it is saved: (tokens, width) vectors, by its encoder where it has one; None for a model without.

    They are what the model uses once it is trained. peft would compute them in training mode, with the encoder's dropout.
    """
    if not hasattr(model, "prompt_encoder"):
        return None
    with evaluating(model.prompt_encoder):
        vectors: Tensor = type(model).get_prompt_embedding_to_save(model, model.active_adapter)
        return vectors.clone()
