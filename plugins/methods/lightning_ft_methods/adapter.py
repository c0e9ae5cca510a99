"""What all methods have in common that peft brings: attaching, saving, merging, and the model without them."""

from __future__ import annotations

import contextlib
import copy
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.backbone import quiet_peft
from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.loading import untie_adapted
from lightning_ft.method import Method
from lightning_ft.quantization import is_quantized, keep_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from peft import PeftConfig
    from torch import Tensor, nn


@dataclass(frozen=True)
class Adapter(Method):
    """A method whose parameters peft puts beside the frozen model; subclasses say which, in `peft_config`."""

    takes_conv1d: ClassVar[bool] = True
    """False where peft has no version of it for the Conv1D layers of GPT-2."""

    @abstractmethod
    def peft_config(self, model: nn.Module, total_steps: int) -> PeftConfig:
        """The adapter as peft describes it."""

    def start(self, model: nn.Module) -> None:
        """Give the adapter a start of its own."""

    @property
    def changes_base(self) -> bool:
        """Whether base weights differ from the pretrained ones once the adapter is there."""
        return False

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model as a `PeftModel`, what the method adds in float32 and everything else frozen.

        Raises:
            UsageError: a name in `target_modules` is that of no layer or of one that the method does not take, or the model is
                of layers that it does not take.
        """
        from peft import get_peft_model

        if not self.takes_conv1d and has_conv1d(model):
            raise UsageError(
                f"Expected a model of linear layers for --method {self.name}, got one of Conv1D layers as GPT-2; type --method"
                " lora."
            )
        config = self.peft_config(model, total_steps)
        modules_to_save = copy.copy(getattr(config, "modules_to_save", None))
        _check_modules(model, modules_to_save or ())
        _check_layers(model, getattr(self, "target_modules", None))
        linear = ", ".join(linear_names(model))  # peft leaves what it began where it refuses
        with quiet_peft():
            try:
                adapted: nn.Module = get_peft_model(model, config)
            except ValueError as error:
                found = re.match(r"Target module (\w+)\(.* is not supported", str(error), re.DOTALL)
                if found is None:
                    raise UsageError(
                        f"Expected options that peft takes for --method {self.name} (with --method.target_modules of linear "
                        f"layers: {linear}), got ones that it refuses: {' '.join(str(error).split())[:200]}"
                    ) from error
                raise UsageError(
                    f"Expected --method.target_modules to name layers that --method {self.name} takes ({linear}); got one that "
                    f"is a {found[1]}."
                ) from error
        for kept in adapted.peft_config.values():  # type: ignore[operator]  # a PeftModel's dict
            # peft puts the tied module's name here and, loading the saved adapter, would not find its twin.
            kept.modules_to_save = modules_to_save
        if is_quantized(model):
            keep_types(adapted)
        self.start(adapted)
        # Past nn.Module's own __setattr__, which is declared for tensors and modules: these are notes for `merge` and
        # `reference`, no part of the model's state.
        object.__setattr__(adapted, "widened", _widen(adapted))
        if self.changes_base:
            # Without the adapter, peft would leave the residual of W (or trained biases), not the pretrained model.
            object.__setattr__(adapted, "initial_adapter", {k: v.clone() for k, v in self.trainable_state(adapted).items()})
        return adapted

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The adapter in peft's names, as `adapter_model.safetensors` holds it."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in state.items()}

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned, bit for bit.

        Raises:
            ValueError: a name in `state` is not one of this adapter's, or the other way round.
        """
        from peft import set_peft_model_state_dict

        odd = sorted(self.trainable_state(model).keys() ^ state.keys())
        if odd:
            raise ValueError(f"The checkpoint's parameters are not those of method {self.name}: {', '.join(odd[:3])} ...")
        set_peft_model_state_dict(model, dict(state))

    def merge(self, model: nn.Module) -> nn.Module:
        """The base model with the learned change in its weights.

        Raises:
            NotMergeableError: the base is quantised.
            ValueError: a merged weight is not finite; the model is left as it was.
        """
        if is_quantized(model):
            raise NotMergeableError(
                "Expected a base of full precision to merge into, got a quantised one, in which rounding would undo most of"
                " what was learned; type `lightning-ft merge --model RUN --output FOLDER`, which turns the base back first."
            )
        widened: list[tuple[nn.Parameter, torch.dtype]] = getattr(model, "widened", [])
        untie_adapted(model)
        merged: nn.Module = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]  # a PeftModel, by `attach`
        for parameter, dtype in widened:
            parameter.data = parameter.data.to(dtype)
        return merged

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The pretrained function: the adapter switched off, or (where it changed the base) as it was at the start.

        Raises:
            NotImplementedError: the base changed, and the model was loaded since, so that nobody knows how it was.
        """
        initial = getattr(model, "initial_adapter", None)
        if initial is None and self.changes_base:
            raise NotImplementedError(f"Method {self.name} changed the base of this model, and its start was not kept.")
        if initial is None:
            with model.disable_adapter():  # type: ignore[operator]  # a PeftModel, by `attach`
                yield model
            return
        trained = {name: tensor.clone() for name, tensor in self.trainable_state(model).items()}
        self.load_trainable_state(model, initial)
        try:
            yield model
        finally:
            self.load_trainable_state(model, trained)


def targets(names: str | list[str]) -> str | list[str]:
    """What peft takes: it would read a name that stands alone as a regular expression for whole module paths."""
    if isinstance(names, str):
        return names if names == "all-linear" else [names]
    return list(names)  # a copy: peft rewrites the lists that it is given


def check_targets(names: str | list[str]) -> None:
    """Refuse an empty `target_modules`.

    Raises:
        UsageError: it is empty.
    """
    if not names:
        raise UsageError("Expected --method.target_modules to be all-linear or names as [q_proj,v_proj]; got none.")


def check_whole(option: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"Expected --method.{option} to be a whole number of at least {least}; got {value!r}.")


def check_share(option: str, value: Any) -> None:
    """Refuse what is no probability below 1.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not 0 <= value < 1:
        raise UsageError(f"Expected --method.{option} to be at least 0 and below 1; got {value}.")


def check_positive(option: str, value: Any) -> None:
    """Refuse what is not above 0.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not value > 0:
        raise UsageError(f"Expected --method.{option} to be above 0; got {value}.")


def check_choice(option: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        UsageError: it is not.
    """
    if value not in choices:
        raise UsageError(f"Expected --method.{option} to be one of {', '.join(map(str, choices))}; got {value!r}.")


def has_conv1d(model: nn.Module) -> bool:
    """Whether linear layers of the model are GPT-2's Conv1D, with weights of shape (in_features, out_features)."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def linear_names(model: nn.Module) -> list[str]:
    """The ends of the names of all linear layers."""
    return sorted({name.rpartition(".")[2] for name, _ in _linears(model)})


def adapted_layers(model: nn.Module, names: str | list[str]) -> list[tuple[str, nn.Module]]:
    """The linear layers that `target_modules` means, with their paths."""
    if names == "all-linear":
        head = model.get_output_embeddings()  # type: ignore[operator]  # a PreTrainedModel's
        return [(path, layer) for path, layer in _linears(model) if layer is not head]
    return [(path, layer) for path, layer in _linears(model) if any(is_named(path, name) for name in targets(names))]


def _linears(model: nn.Module) -> list[tuple[str, nn.Module]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [(path, module) for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def is_named(path: str, name: str) -> bool:
    """Whether peft takes the module at that path for one of that name."""
    return path == name or path.endswith(f".{name}")


def _check_modules(model: nn.Module, wanted: Iterable[str]) -> None:
    """Refuse names of `modules_to_save` that no module ends in; peft would leave them out."""
    known = {name.rpartition(".")[2] for name, module in model.named_modules() if any(True for _ in module.parameters())}
    paths = {name for name, _ in model.named_modules()}
    for name in wanted:
        if not any(is_named(path, name) for path in paths):
            named = ", ".join(sorted(end for end in known if end and not end.isdigit()))
            raise UsageError(f"Expected --method.modules_to_save to name modules of this model ({named}); got {name}.")
        found = (module for path, module in model.named_modules() if is_named(path, name))
        if not all(p.is_floating_point() for module in found for p in module.parameters()):
            raise UsageError(
                f"Expected --method.modules_to_save to name modules whose weights can train, got {name}, which --quantize "
                "stores in few bits; leave one of the two out."
            )


def _check_layers(model: nn.Module, wanted: str | list[str] | None) -> None:
    """Refuse names of `target_modules` that no module ends in; peft would leave them out where others are found."""
    if wanted is None or wanted == "all-linear":
        return
    paths = [name for name, _ in model.named_modules()]
    for name in targets(wanted):
        if not any(is_named(path, name) for path in paths):
            raise UsageError(
                f"Expected --method.target_modules to name layers of this model ({', '.join(linear_names(model))}); got {name}."
            )


def _widen(model: nn.Module) -> list[tuple[nn.Parameter, torch.dtype]]:
    """Make what trains float32 where peft did not, and return it with the dtypes it had.

    peft widens adapters only; biases and whole modules in bfloat16 would lose most of their small updates. Norms follow
    where there are such, for torch's layer norm takes no bfloat16 weights beside a float32 bias or input.
    """
    import torch

    low = [p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    if not any(p.requires_grad for p in low):
        return []
    widened = [(p, p.dtype) for p in low if p.requires_grad or p.ndim == 1]
    for parameter, _ in widened:
        parameter.data = parameter.data.float()
    wide = {id(p): dtype for p, dtype in widened}
    for module in model.modules():
        dtypes = [wide[id(p)] for p in module.parameters(recurse=False) if id(p) in wide]
        if dtypes:
            _mix(module, dtypes[0])
    return widened


def _mix(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a module with float32 weights among others of `dtype` compute as under autocast, wherever it is called."""
    import torch

    inner = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, dtype=dtype):
            return inner(x, *args, **kwargs).to(dtype)

    module.forward = forward
