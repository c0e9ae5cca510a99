"""AdaLoRA: ranks move during training to the layers where they matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import UsageError
from lightning_ft_methods.adapter import Adapter, check_positive, check_share, check_targets, check_whole, has_conv1d, targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import AdaLoraConfig
    from torch import Tensor, nn

STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator keeps of each parameter: sensitivity, its mean over steps, and the mean of its deviations."""


@dataclass(frozen=True)
class AdaLoRA(Adapter):
    """Low-rank adaptation in the form of a singular value decomposition, whose least important values are set to zero.

    y = W x + s B E A x, A: (initial_rank, in_features), B: (out_features, initial_rank), E a diagonal started at 0 and
    s = alpha / initial_rank (Zhang et al. 2023, arXiv:2303.10512, eq. 3). A term in the loss,
    `orthogonality` * mean(||A A^T - I||_F, ||B^T B - I||_F), keeps A and B near orthogonal (eq. 4). After
    `warmup` of the steps the budget falls from initial_rank to rank per layer with the cube of the time left, until
    `settle` of the steps remain (eq. 12): every `every` steps the values of E with the lowest importance (their own
    sensitivity and the mean of their row's and column's, each smoothed over steps: eq. 8 to 10) are set to 0.
    """

    name: ClassVar[str] = "adalora"
    learning_rate: ClassVar[float | None] = 1e-3
    schedule: ClassVar[frozenset[str]] = frozenset({"total_step", "tinit", "tfinal", "deltaT"})

    rank: int = 8
    """Rank that a layer has on average at the end."""
    initial_rank: int = 12
    """Rank of every layer at the start, about half as much again."""
    alpha: float | None = None
    """Numerator of the scale s = alpha / initial_rank; None: 2 * initial_rank."""
    dropout: float = 0.0
    """Probability with which inputs of A are zeroed in training."""
    target_modules: str | list[str] = "all-linear"
    """Layers that are adapted: `all-linear` (all but the output head), or ends of module names."""
    warmup: float = 0.1
    """Share of the steps before the first value is set to zero."""
    settle: float = 0.3
    """Share of the steps, at the end, in which the ranks stay as they are."""
    every: int = 1
    """Steps from one allocation to the next."""
    orthogonality: float = 0.5
    """Weight of the orthogonality term; 0: without it."""

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        check_whole("initial_rank", self.initial_rank)
        check_whole("every", self.every)
        check_share("dropout", self.dropout)
        check_targets(self.target_modules)
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        if self.initial_rank <= self.rank:
            raise UsageError(
                f"Expected --method.initial_rank above --method.rank, to which it falls; got {self.initial_rank}, {self.rank}."
            )
        if not (self.warmup >= 0 and self.settle >= 0 and self.warmup + self.settle < 1):
            got = f"{self.warmup} and {self.settle}"
            raise UsageError(f"Expected --method.warmup and --method.settle of at least 0, together below 1; got {got}.")
        if not self.orthogonality >= 0:
            raise UsageError(f"Expected --method.orthogonality to be at least 0; got {self.orthogonality}.")

    def peft_config(self, model: nn.Module, total_steps: int) -> AdaLoraConfig:
        """Peft's `AdaLoraConfig`, with the budget's schedule over the steps of this run."""
        from peft import AdaLoraConfig

        settle = int(self.settle * total_steps)
        return AdaLoraConfig(
            task_type="CAUSAL_LM",
            init_r=self.initial_rank,
            target_r=self.rank,
            lora_alpha=2 * self.initial_rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # peft divides it, any number does
            lora_dropout=self.dropout,
            target_modules=targets(self.target_modules),
            tinit=min(int(self.warmup * total_steps), total_steps - settle - 1),
            tfinal=settle,
            deltaT=self.every,
            total_step=total_steps,
            orth_reg_weight=self.orthogonality,
            fan_in_fan_out=has_conv1d(model),
        )

    def regularizer(self, model: nn.Module) -> Tensor | None:
        """The orthogonality term, which peft adds only to a loss of its own."""
        import torch

        if not self.orthogonality:
            return None
        named = [(name, p) for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]
        grams = [p @ p.T if "lora_A" in name else p.T @ p for name, p in named]
        gaps = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.orthogonality * torch.stack(gaps).mean()

    def on_step(self, model: nn.Module, step: int) -> None:
        """Judge the parameters by their gradients, and give the ranks to those that matter."""
        tuner = _tuner(model)
        config = tuner.peft_config["default"]
        # Only for the call: by this pattern peft would leave values out of the saved adapter, and whole layers with them.
        config.rank_pattern = getattr(tuner, "kept", None)
        tuner.update_and_allocate(step)
        object.__setattr__(tuner, "kept", config.rank_pattern)
        config.rank_pattern = None

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The statistics of the allocator, and which values it keeps."""
        import torch

        tuner = _tuner(model)
        state = {f"{kind}/{name}": tensor for kind in STATISTICS for name, tensor in getattr(tuner.rankallocator, kind).items()}
        kept = getattr(tuner, "kept", None) or {}
        return state | {f"kept/{name}": torch.tensor(values) for name, values in kept.items()}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `training_state` returned."""
        tuner = _tuner(model)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            kind, _, own = name.partition("/")
            parts.setdefault(kind, {})[own] = tensor
        device = next(model.parameters()).device
        for kind in STATISTICS:
            setattr(tuner.rankallocator, kind, {name: tensor.to(device) for name, tensor in parts.get(kind, {}).items()})
        object.__setattr__(tuner, "kept", {name: tensor.tolist() for name, tensor in parts.get("kept", {}).items()} or None)


def _tuner(model: nn.Module) -> Any:
    """Peft's `AdaLoraModel` within the adapted model."""
    return model.base_model
