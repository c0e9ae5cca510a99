"""Low-rank adaptation on peft, with its variants as options."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from lightning_ft.errors import UsageError
from lightning_ft.method import Method

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from peft import LoraConfig
    from torch import Tensor, nn

Bias = Literal["none", "all", "lora_only"]
Init = Literal["default", "gaussian", "orthogonal", "pissa", "olora"]
TIED = frozenset({"lm_head", "embed_tokens"})
"""Names by which peft knows the output head and the embedding, which may share one matrix."""


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation: the pretrained weights stay, a product of two thin matrices is learned beside each.

    For a linear layer with W of shape (out_features, in_features),

        y = W x + s B A x,    A: (rank, in_features),  B: (out_features, rank),  s = alpha / rank

    A is drawn at random and B is zero, so training starts at the pretrained function (Hu et al. 2021,
    arXiv:2106.09685, eq. 3). Merged: W' = W + s B A, without cost at inference. A layer has
    rank * (in_features + out_features) trainable numbers. All that trains is float32 also
    beside bfloat16 weights, so such a model runs under autocast.

    Variants: rsLoRA (`use_rslora`), DoRA (`use_dora`), LoRA+ (`plus_ratio`), PiSSA and OLoRA (`init`).
    """

    name: ClassVar[str] = "lora"
    default: ClassVar[bool] = True
    quickstart: ClassVar[Mapping[str, Any]] = {
        "method": {"rank": 64, "alpha": 128, "plus_ratio": 8.0}, "learning_rate": 1e-3, "epochs": 10.0,
    }  # fmt: skip

    rank: int = 16
    """Rank of the learned change, r."""
    alpha: float | None = None
    """Numerator of the scale s = alpha / rank; None: 2 * rank, so that s is 2 at every rank."""
    dropout: float = 0.0
    """Probability with which inputs of A are zeroed in training; 0: none, as peft and torchtune have it."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get A and B: `all-linear` (all but the output head), or ends of module names as q_proj or
    [q_proj, v_proj]; never a pattern."""
    bias: Bias = "none"
    """Biases of the pretrained model that train too: none, all, or lora_only (those of the adapted layers)."""
    modules_to_save: list[str] | None = None
    """Modules that train whole beside the adapter, as [lm_head, embed_tokens] after new tokens; None: none."""
    init: Init = "default"
    """Start of A and B. default: A Kaiming-uniform, B zero. gaussian: A normal, B zero. orthogonal: random with B A = 0.
    pissa: the leading singular vectors of W, the rest of W frozen (Meng et al. 2024, arXiv:2404.02948, eq. 2-4).
    olora: the QR factors of W (Bueyuekakyuez 2024, arXiv:2406.01775), not for GPT-2's Conv1D layers.
    pissa and olora are computed again from the base weights whenever the adapter is loaded."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, stable at high ranks (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn the norm of each output apart from its direction: W' = m (W + s B A) / ||W + s B A||, m (out_features)
    trained (Liu et al. 2024, arXiv:2402.09353, eq. 5)."""
    plus_ratio: float | None = None
    """LoRA+: learning rate of B over that of A, 16 in the paper (Hayou et al. 2024, arXiv:2402.12354); None: one rate."""

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UsageError(f"Expected --method.rank to be a whole number of at least 1; got {self.rank!r}.")
        if self.alpha is not None and not self.alpha > 0:
            raise UsageError(f"Expected --method.alpha to be above 0; got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"Expected --method.dropout to be at least 0 and below 1; got {self.dropout}.")
        if self.plus_ratio is not None and not self.plus_ratio > 0:
            raise UsageError(f"Expected --method.plus_ratio to be above 0; got {self.plus_ratio}.")
        if not self.target_modules:
            raise UsageError("Expected --method.target_modules to be all-linear or names as [q_proj,v_proj]; got none.")
        for option, choices in (("bias", get_args(Bias)), ("init", get_args(Init))):
            value = getattr(self, option)
            if value not in choices:
                raise UsageError(f"Expected --method.{option} to be one of {', '.join(choices)}; got {value!r}.")

    @property
    def changes_base(self) -> bool:
        """Whether base weights differ from the pretrained ones once the adapter is there."""
        return self.init in ("pissa", "olora") or self.bias != "none"

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model as a `PeftModel` with A and B in float32 beside every target, everything else frozen.

        Raises:
            UsageError: no layer has one of the names in `target_modules`, or `init=olora` meets a Conv1D layer.
        """
        from peft import get_peft_model

        from lightning_ft_methods.fused import fuse

        config = self._config(model)
        if self.init == "olora" and config.fan_in_fan_out:
            raise UsageError("Expected --method.init default, gaussian, orthogonal or pissa for Conv1D layers; got olora.")
        with _quiet():
            try:
                adapted: nn.Module = get_peft_model(model, config)
            except ValueError as error:
                if "not found in the base model" not in str(error):
                    raise
                raise UsageError(
                    f"Expected --method.target_modules to name layers of this model ({', '.join(_linear_names(model))}); "
                    f"got {self.target_modules}."
                ) from error
        for kept in adapted.peft_config.values():  # type: ignore[operator]  # a PeftModel's dict
            # peft puts the tied module's name here and, loading the saved adapter, would not find its twin.
            kept.modules_to_save = copy.copy(self.modules_to_save)
        # Past nn.Module's own __setattr__, which is declared for tensors and modules: these are notes for `merge` and
        # `reference`, no part of the model's state.
        object.__setattr__(adapted, "widened", _widen(adapted))
        fuse(adapted)
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
        """The base model with W + s B A in place of W.

        Raises:
            ValueError: a merged weight is not finite; the model is left as it was.
        """
        widened: list[tuple[nn.Parameter, torch.dtype]] = getattr(model, "widened", [])
        merged: nn.Module = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]  # a PeftModel, by `attach`
        for parameter, dtype in widened:
            parameter.data = parameter.data.to(dtype)
        return merged

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The pretrained function: the adapter switched off, or (where it changed the base) as it was at the start."""
        initial = getattr(model, "initial_adapter", None)
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

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]] | None:
        """With `plus_ratio`, B in a group of its own at `plus_ratio * learning_rate`; else None."""
        if self.plus_ratio is None:
            return None
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        fast = [p for name, p in named if "lora_B" in name or "lora_embedding_B" in name]
        slow = [p for name, p in named if not ("lora_B" in name or "lora_embedding_B" in name)]
        return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": learning_rate * self.plus_ratio}]

    def _targets(self) -> str | list[str]:
        """What peft takes: it would read a name that stands alone as a regular expression for whole module paths."""
        if isinstance(self.target_modules, str):
            return self.target_modules if self.target_modules == "all-linear" else [self.target_modules]
        # A copy: peft rewrites the lists that it is given.
        return list(self.target_modules)

    def _config(self, model: nn.Module) -> LoraConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        config = getattr(model, "config", None)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # peft divides it, any number does
            lora_dropout=self.dropout,
            target_modules=self._targets(),
            bias=self.bias,
            # A copy: peft rewrites the lists that it is given.
            modules_to_save=copy.copy(self.modules_to_save),
            init_lora_weights=True if self.init == "default" else self.init,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            # One matrix in the model stays one in training; peft would train a copy of it and untie the merged model.
            ensure_weight_tying=tied and any(m.rpartition(".")[2] in TIED for m in self.modules_to_save or ()),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notice that peft's use of transformers' old attribute name draws: users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


def _widen(model: nn.Module) -> list[tuple[nn.Parameter, torch.dtype]]:
    """Make what trains beside A and B float32, and return it with the dtypes it had.

    peft widens A and B only; biases and whole modules in bfloat16 would lose most of their small updates. Norms follow
    where there are such, for torch's layer norm takes no bfloat16 weights beside a float32 bias or input.
    """
    import torch

    low = [p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    if not any(p.requires_grad for p in low):
        return []
    widened = [(p, p.dtype) for p in low if p.requires_grad or p.ndim == 1]
    for parameter, _ in widened:
        parameter.data = parameter.data.float()
    return widened


def _linear_names(model: nn.Module) -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)})
