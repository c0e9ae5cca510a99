"""From a name to a model and its tokenizer, with the checks that must come before any weight is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Which model, and how it is to be loaded."""

    model: str
    """Folder or hub id of a plain model (adapters and run folders are resolved before)."""
    dtype: torch.dtype | None = None
    """Data type of the weights; None: as they are stored."""
    revision: str | None = None
    trust_remote_code: bool = False
    from_scratch: bool = False
    """Random weights from the model's config."""


@dataclass(frozen=True)
class Backbone:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def check_folder(folder: Path, spec: BackboneSpec) -> None:
    """Refuse a model folder that is incomplete or that would run code.

    Raises:
        UsageError: config, weights or tokenizer are missing; the config names code of its own or private kernels.
    """
    config = _config(folder)
    if config.get("auto_map") and not spec.trust_remote_code:
        raise UsageError(
            f"'{folder}' needs Python code of its own (auto_map in config.json); read it, then type --trust_remote_code "
            "--revision COMMIT."
        )
    private = sorted(key for key in config if key.startswith("_") and ("implementation" in key or "kernel" in key))
    if private:
        raise UsageError(
            f"'{folder}/config.json' sets the private key '{private[0]}', which can load foreign code; remove the key."
        )
    if not spec.from_scratch and not any((folder / name).is_file() for name in WEIGHTS):
        found = "pickled weights only" if list(folder.glob("*.bin")) else "none"
        raise UsageError(
            f"Expected weights in '{folder}' ({' or '.join(WEIGHTS)}), found {found}; to start from random weights type "
            "--from_scratch true."
        )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"Expected '{folder}' to hold config.json; it does not.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected JSON, got {error}.") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected an object, got {type(config).__name__}.")
    return config


def load_tokenizer(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token that is not its end-of-text token wherever it has any other to offer.

    Raises:
        UsageError: the folder holds no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise UsageError(
            f"Expected a tokenizer in '{source}' (tokenizer.json), found none; copy the base model's tokenizer files there."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"Expected a tokenizer in '{source}'; transformers says: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        # Padding is masked by position everywhere, so the id only has to exist; eos keeps the vocabulary as it is.
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token_id is not None else tokenizer.eos_token
    return tokenizer


def load_causal_lm(spec: BackboneSpec) -> Backbone:
    """A causal language model with `AutoModelForCausalLM`, in evaluation mode.

    Raises:
        UsageError: the folder is incomplete, or the hub cannot be reached.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if Path(spec.model).is_dir():
        check_folder(Path(spec.model), spec)
    tokenizer = load_tokenizer(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    hub: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    try:
        if spec.from_scratch:
            config = AutoConfig.from_pretrained(spec.model, **hub)
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(config, trust_remote_code=spec.trust_remote_code).to(spec.dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=spec.dtype or "auto", use_safetensors=True, **hub)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Expected a causal language model in '{spec.model}'; transformers says: {_first_line(error)}"
        ) from error
    # Adapters note this as their base; an absolute path makes them loadable from any working folder.
    if Path(spec.model).is_dir():
        model.name_or_path = model.config._name_or_path = str(Path(spec.model).resolve())
    return Backbone(model, tokenizer)


def checkpoint_activations(model: Any) -> None:
    """Let the model recompute its activations in the backward pass instead of keeping them."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # before transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
