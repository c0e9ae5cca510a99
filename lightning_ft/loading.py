"""What `--model NAME` means, and loading it ready to answer: plain models, adapters, run folders, hub ids."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from lightning_ft import layout
from lightning_ft.atomic import MANIFEST
from lightning_ft.backbone import AGAIN, BackboneSpec, has_own_code, load_tokenizer, quiet_peft, read_json, tokenizer_of
from lightning_ft.errors import UsageError
from lightning_ft.quantization import NOTE, Quantization, keep_types
from lightning_ft.vocabulary import grow

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lightning_ft.data.render import Template

EMBEDDED = "embedded"
"""The name of the small model that is shipped with the package."""
ADAPTER = "adapter_config.json"
BENEATH = "beneath"
"""Folder, and peft's name, of an adapter that takes part beneath the one in whose folder it lies."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """Where a model's parts lie."""

    kind: Literal["plain", "adapter", "hub"]
    base: str
    """Folder or hub id of the plain model."""
    adapter: Path | None = None
    quantization: Quantization | None = None
    """How the base was stored when the adapter was trained."""
    revision: str | None = None

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer and its template lie: beside the adapter where it has its own."""
        if self.adapter and (self.adapter / "tokenizer_config.json").is_file():
            return str(self.adapter)
        return self.base


def embedded_folder() -> Path:
    """The folder of the model that is shipped."""
    return Path(__file__).parent / "assets" / "base"


def locate(name: str, *, revision: str | None = None) -> Location:
    """What `--model NAME` means: `embedded`, a run folder, an adapter, a plain model folder, or a hub id.

    Raises:
        UsageError: nothing of these; the message says what was looked for.
    """
    if name == EMBEDDED:
        return Location("plain", str(embedded_folder()))
    folder = Path(name).expanduser()
    if not folder.exists():
        if HUB_ID.fullmatch(name) and not folder.parent.is_dir():
            return Location("hub", name, revision=revision)
        raise UsageError(
            f"Expected --model to be a model folder, a run folder, a hub id (owner/name) or 'embedded'; '{name}' is none."
        )
    if not folder.is_dir():
        raise UsageError(f"Expected --model to be a folder, got the file '{name}'; type the folder that holds it.")
    if (folder / layout.RECORD).is_file():
        return locate(str(_offered_by(folder)), revision=revision)
    if (folder / ADAPTER).is_file():
        base, pinned = _base_of(folder)
        return replace(
            locate(base, revision=revision or pinned), kind="adapter", adapter=folder, quantization=quantization_of(folder)
        )
    if (folder / "config.json").is_file():
        return Location("plain", str(folder))
    raise UsageError(f"Expected '{name}' to hold config.json, {ADAPTER} or run.json; it holds none, so it is no model folder.")


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """The plain model that an adapter stands on, and which revision of a hub's."""
    config = read_json(adapter / ADAPTER)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or not isinstance(base, str):
        raise UsageError(f"Expected {adapter / ADAPTER} to name its base model in 'base_model_name_or_path'; it does not.")
    folder = Path(base).expanduser()
    if (folder / ADAPTER).is_file() or not (folder.is_dir() or HUB_ID.fullmatch(base)):
        got = "an adapter itself" if folder.is_dir() else "not there"
        raise UsageError(
            f"Expected the base model '{base}' that '{adapter}' names to be a plain model, but it is {got}; put it back, or "
            f"write where it lies as 'base_model_name_or_path' into {adapter / ADAPTER}."
        )
    return base, revision if isinstance(revision, str) else None


def _offered_by(folder: Path) -> Path:
    """The model that a run offers: its final one, else its newest whole checkpoint."""
    if (folder / layout.FINAL).is_dir():
        return folder / layout.FINAL
    from lightning_ft.checkpoint import newest

    checkpoint = newest(folder)
    if checkpoint is None:
        raise UsageError(f"Expected run folder '{folder}' to hold final_model/ or a whole checkpoint; it holds neither.")
    return checkpoint


def quantization_of(folder: Path) -> Quantization | None:
    """What the note in an adapter's folder says; None where there is none.

    Raises:
        UsageError: the note cannot be read, or is missing where the folder's manifest names it.
    """
    path, manifest = folder / NOTE, folder / MANIFEST
    if not path.is_file():
        if manifest.is_file() and NOTE in read_json(manifest).get("files", {}):
            raise UsageError(f"Expected '{path}' beside the adapter, which says how its base is stored, found none; {AGAIN}.")
        return None
    values = read_json(path)
    try:
        return Quantization(**values)
    except (TypeError, UsageError) as error:
        names = ", ".join(field.name for field in fields(Quantization))
        raise UsageError(f"Expected '{path}' to hold {names} as they were saved, got {values}; {AGAIN}.") from error


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    template: Template
    stop_tokens: tuple[int, ...]


def load(
    name: str, *, dtype: torch.dtype | None = None, device: str | None = None, template: str = "auto",
    revision: str | None = None, trust_remote_code: bool = False, from_scratch: bool = False,
) -> Loaded:  # fmt: skip
    """Model, tokenizer and template of whatever `--model` may name, on the best device, in evaluation mode.

    Args:
        name: As for `locate`.
        dtype: Of the weights; None: as they are stored.
        device: None: a GPU where there is one.
        template: As `--template`.
        revision: Of a hub's model; None: the one that an adapter was trained on, else the newest.
        trust_remote_code: Whether the repository's own code may run.
        from_scratch: New weights, drawn from torch's random numbers.
    """
    import torch

    from lightning_ft.data.render import Template
    from lightning_ft.registry import registry
    from lightning_ft.threads import keep_to_quota

    keep_to_quota()
    where = locate(name, revision=revision)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    spec = BackboneSpec(
        model=where.base, dtype=dtype, quantization=where.quantization, device=target, revision=where.revision,
        trust_remote_code=trust_remote_code, from_scratch=from_scratch,
    )  # fmt: skip
    model: Any = registry().manager.hook.load_backbone(spec=spec).model
    if where.adapter is not None:
        model = with_adapter(model, where.adapter)
        if where.quantization is not None:
            keep_types(model)
    tokenizer = load_tokenizer(where.tokenizer, revision=where.revision, trust_remote_code=trust_remote_code)
    chosen = Template.resolve(template, tokenizer)
    if target.index is not None:
        torch.cuda.set_device(target)  # where kernels of our own start
    model.to(target).eval()
    return Loaded(model, tokenizer, chosen, chosen.stop_tokens(tokenizer))


def with_adapter(model: Any, folder: Path) -> Any:
    """A model with the adapter of a folder, and the one beneath it if there is any, both taking part.

    Raises:
        UsageError: the adapter is not whole, or of another model.
    """
    from peft import PeftModel

    if (folder / "tokenizer_config.json").is_file():
        _make_room(model, load_tokenizer(str(folder), trust_remote_code=has_own_code(model)))
    with quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be new, and do nothing
        try:
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
            if (folder / BENEATH / ADAPTER).is_file():
                adapted.load_adapter(str(folder / BENEATH), adapter_name=BENEATH)
                adapted.base_model.set_adapter([BENEATH, adapted.active_adapter])
        except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
            raise UsageError(
                f"Expected an adapter of '{model.name_or_path}' in '{folder}', got: {' '.join(str(error).split())[:200]}; "
                "name a whole one with --model."
            ) from error
    return adapted


def _make_room(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows for the tokens that an adapter's tokenizer has more than its base has rows."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        grow(model, tokenizer_of(model), tokenizer)


def untie_adapted(model: Any) -> None:
    """Give embedding and output head a matrix each, before merging, where they share one and an adapter changes one of them."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted: list[Any] = [module for module in (embedding, head) if isinstance(module, BaseTunerLayer)]
    together = any(getattr(config, "ensure_weight_tying", False) for config in model.peft_config.values())
    if head is None or not adapted or embedding.weight is not head.weight or together:
        return
    plain = adapted[-1].get_base_layer()
    plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False
