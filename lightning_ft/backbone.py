"""From a name to a model and its tokenizer, with the checks that must come before any weight is loaded."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError

from lightning_ft.errors import UsageError, json_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lightning_ft.quantization import Quantization


AGAIN = "copy the folder again from where the model came from"
DROPOUT = re.compile(r"(?!classifier|layer).*(dropout|pdrop)(_p|_prob|_rate)?")
"""Names under which layers keep the probability of a dropout."""
NOTICES = (
    "Failed to load the CUDA ext", "Setting boft_n_butterfly", "Unsupported layer type '.*Norm'",
    "fan_in_fan_out is set to False but", "Invalid `oft_block_size`",
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
)  # fmt: skip
"""Beginnings of peft's warnings that users can do nothing about."""
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
    quantization: Quantization | None = None
    """How its linear layers are stored in few bits; None: as they are."""
    device: torch.device | None = None
    """Where the model will compute, for loaders that have to know."""


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
    config = read_json(folder / "config.json")
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        UsageError: there is no such file, or it holds anything else.
    """
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UsageError(f"Expected '{path.parent}' to hold a readable {path.name}, got: {error.strerror}; {AGAIN}.") from None
    except UnicodeDecodeError as error:
        got = f"the byte {error.object[error.start]:#04x} at byte {error.start}"
        raise UsageError(f"{path}: expected JSON in UTF-8, got {got}; {AGAIN}.") from None
    except json.JSONDecodeError as error:
        raise UsageError(f'{path}:{error.lineno}: expected JSON, got "{error.msg}" at column {error.colno}; {AGAIN}.') from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}:1: expected a JSON object, got {json_name(values)}; {AGAIN}.")
    return values


def load_config(spec: BackboneSpec) -> Any:
    """The model's transformers config.

    Raises:
        UsageError: there is none, or transformers does not know its `model_type`.
    """
    from transformers import AutoConfig

    if Path(spec.model).is_dir():
        values = read_json(Path(spec.model) / "config.json")
        if not isinstance(values.get("model_type"), str):
            raise UsageError(f"Expected '{spec.model}/config.json' to name its 'model_type', as \"llama\"; it does not.")
    try:
        return AutoConfig.from_pretrained(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # a config of wrong values fails in any way that its class can
        raise _refused("a model", spec.model, error, "mend its config.json, or name another model with --model") from error


def positions_of(config: Any, taken: int = 0) -> int:
    """Tokens of a row that a model has places for, by its config; 2,048 where that sets no limit.

    Args:
        config: transformers' config of the model.
        taken: places that a method takes before every row.

    Raises:
        UsageError: it takes all of them.
    """
    places = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)
    if taken >= places:
        raise UsageError(
            f"Expected a method that leaves some of the model's {places} positions to the rows, got one that takes {taken} "
            "before each; give it fewer."
        )
    return places - taken


def taken_positions(model: Any) -> int:
    """Places that the learned vectors of a loaded adapter take before every row."""
    adapters = getattr(model, "peft_config", {}).values()
    return max((getattr(adapter, "num_virtual_tokens", None) or 0 for adapter in adapters), default=0)


def longest_row(asked: int | None, positions: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """`max_length`, else the context of the model and of its tokenizer, at most 2,048 tokens.

    Raises:
        UsageError: more is asked for than the model's positions, or nothing.
    """
    if asked is not None and not 0 < asked <= positions:
        raise UsageError(f"Expected --max_length from 1 to {positions}, the model's positions; got {asked}.")
    known = tokenizer.model_max_length
    return asked or min(2048, positions, known if known > 0 else positions)


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model that is loaded, of the same commit; code of its own runs where the model's does.

    Raises:
        UsageError: as `load_tokenizer`.
    """
    revision = getattr(model.config, "_commit_hash", None)
    return load_tokenizer(model.name_or_path, revision=revision, trust_remote_code=has_own_code(model))


def has_own_code(model: Any) -> bool:
    """Whether a loaded base model runs code of its repository, which then was trusted."""
    return type(model).__module__.startswith("transformers_modules.")


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
    for name in names[:2]:
        if (folder / name).is_file():
            read_json(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare Exceptions, half a file a KeyError
        raise _refused("a tokenizer", source, error) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked by position everywhere, so the id only has to exist; eos keeps the vocabulary as it is.
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token_id is not None else tokenizer.eos_token
    return tokenizer


def load_causal_lm(spec: BackboneSpec, **loading: Any) -> Backbone:
    """A causal language model with `AutoModelForCausalLM`, in evaluation mode.

    Args:
        spec: Which one.
        loading: Further arguments of `from_pretrained`.

    Raises:
        UsageError: the folder is incomplete or damaged, weights are missing in it, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if Path(spec.model).is_dir():
        check_folder(Path(spec.model), spec)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers does not type it
    config, auto, lost = load_config(spec), cast("Any", AutoModelForCausalLM), set()
    hub: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    tokenizer = load_tokenizer(spec.model, **hub)
    try:
        if spec.from_scratch:
            model = auto.from_config(config, trust_remote_code=spec.trust_remote_code).to(spec.dtype)
        else:
            model, info = auto.from_pretrained(
                spec.model, dtype=spec.dtype or "auto", use_safetensors=True, output_loading_info=True, **loading, **hub
            )
            lost = set(info["missing_keys"])
    except ValueError as error:
        raise _refused("a causal language model", spec.model, error, "name one with --model") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if "mismatched_sizes" in str(error):
            raise UsageError(
                f"Expected the weights in '{spec.model}' to have the shapes that its config.json says; some differ: {AGAIN}."
            ) from error
        raise _refused("a causal language model", spec.model, error) from error
    if lost:
        # transformers would go on with random numbers in their place.
        raise UsageError(
            f"Expected weights for all of {type(model).__name__} in '{spec.model}', but {len(lost)} are missing "
            f"({', '.join(sorted(lost)[:3])}); name a causal language model, or the whole folder of it."
        )
    # Adapters note this as their base; an absolute path makes them loadable from any working folder.
    if Path(spec.model).is_dir():
        model.name_or_path = model.config._name_or_path = str(Path(spec.model).resolve())
    return Backbone(model, tokenizer)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of the model this probability: its `nn.Dropout` modules, and what layers keep as a number.

    The config, which is saved with the model, is left as it is: whoever trains the result on decides anew. Layers that ask it
    at every pass (as Falcon's do) get a copy of their own. Layer drop and the heads of classifiers are no dropout here.

    Raises:
        UsageError: the model has none, and was to get some.
    """
    from torch import nn

    found = 0
    for module in model.modules():
        kept = ["p"] if isinstance(module, nn.Dropout) else []
        kept += [name for name, value in vars(module).items() if type(value) in (int, float) and DROPOUT.fullmatch(name)]
        for name in kept:
            setattr(module, name, probability)
        asked = _asked_of_config(module)
        if asked:
            module.config = copy.copy(module.config)
            vars(module.config).update(dict.fromkeys(asked, probability))
        found += len(kept) + len(asked)
    if not found and probability:
        raise UsageError(
            f"Expected a model with dropouts for --dropout, got {type(model).__name__}, which has none; leave --dropout out."
        )


def _asked_of_config(module: nn.Module) -> list[str]:
    """Names of the dropouts that a layer's forward reads from its config."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None or "config" not in code.co_names or not hasattr(module, "config"):
        return []
    return [
        name for name in code.co_names if DROPOUT.fullmatch(name) and type(getattr(module.config, name, None)) in (int, float)
    ]


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without those of peft's notices that users can do nothing about.

    Its use of transformers' old names, kernels for a CUDA toolkit that is not there, norms that it trains all the same,
    sizes of blocks and orders of weights that it finds itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated", category=FutureWarning)
        for notice in NOTICES:
            warnings.filterwarnings("ignore", message=notice, category=UserWarning)
        yield


def _refused(what: str, source: str, error: Exception, mend: str = AGAIN) -> UsageError:
    """What could not be loaded, why, and what to type."""
    if not Path(source).exists() and isinstance(error, OSError):
        return UsageError(
            f"Expected {what} in '{source}' on the hub or in the local cache, and could reach neither; look at the network "
            "and the spelling, or type --model FOLDER for a model on this machine."
        )
    said = " ".join(str(error).split())
    said = (
        said.partition(". ")[0].rstrip(".") if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {said}"
    )
    return UsageError(f"Expected {what} in '{source}', got: {said[:300]}; {mend}.")
