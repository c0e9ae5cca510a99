"""Low-rank adaptation on peft, with its variants as options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from lightning_ft.errors import UsageError
from lightning_ft.quantization import is_quantized
from lightning_ft_methods.adapter import (
    Adapter,
    check_choice,
    check_positive,
    check_share,
    check_targets,
    check_whole,
    has_conv1d,
    is_named,
    targets,
)
from lightning_ft_methods.tokens import outer_paths, token_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import LoraConfig
    from torch import nn

Bias = Literal["none", "all", "lora_only"]
Init = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"]
TIED = frozenset({"lm_head", "embed_tokens"})
"""Names by which peft knows the output head and the embedding, which may share one matrix."""
EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings"})
HEADS = frozenset({"lm_head", "embed_out"})
"""Names that architectures have for the two, where no model is there yet to be asked."""


@dataclass(frozen=True)
class LoRA(Adapter):
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
    can_shard: ClassVar[bool] = True
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
    trainable_tokens: list[int | str] | None = None
    """Tokens, as ids or as the tokenizer writes them, whose rows of the embedding (and of an output head of its own) train
    too, as [<tool>, 6143]: for new words, at a fraction of what `modules_to_save` takes; None: none."""
    init: Init = "default"
    """Start of A and B. default: A Kaiming-uniform, B zero. gaussian: A normal, B zero. orthogonal: random with B A = 0.
    pissa: the leading singular vectors of W, the rest of W frozen (Meng et al. 2024, arXiv:2404.02948, eq. 2-4).
    olora: the QR factors of W (Bueyuekakyuez 2024, arXiv:2406.01775), not for GPT-2's Conv1D layers.
    pissa and olora are computed again from the base weights whenever the adapter is loaded. loftq, on a quantised base:
    the leading singular vectors of what quantisation took from W (Li et al. 2023, arXiv:2310.08659, algorithm 1, T = 1)."""
    beneath: str | None = None
    """A LoRA adapter (or its run folder) of the same model that stays as it is beneath the new one: both take part, the new
    one learns what the first lacks. Saved with it, in a folder of that name; None: the base model alone."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, stable at high ranks (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn the norm of each output apart from its direction: W' = m (W + s B A) / ||W + s B A||, m (out_features)
    trained (Liu et al. 2024, arXiv:2402.09353, eq. 5)."""
    plus_ratio: float | None = None
    """LoRA+: learning rate of B over that of A, 16 in the paper (Hayou et al. 2024, arXiv:2402.12354); None: one rate."""

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        check_share("dropout", self.dropout)
        check_targets(self.target_modules)
        for option in ("alpha", "plus_ratio"):
            if getattr(self, option) is not None:
                check_positive(option, getattr(self, option))
        if self.trainable_tokens is not None and not self.trainable_tokens:
            raise UsageError("Expected --method.trainable_tokens to name tokens as [<tool>,6143]; got none.")
        check_choice("bias", self.bias, get_args(Bias))
        check_choice("init", self.init, get_args(Init))
        if self.init == "orthogonal" and self.rank % 2:
            raise UsageError(f"Expected an even --method.rank for --method.init orthogonal; got {self.rank}.")

    @property
    def changes_base(self) -> bool:
        """Whether base weights differ from the pretrained ones once the adapter is there."""
        return self.init in ("pissa", "olora", "loftq") or self.bias != "none" or self.beneath is not None

    @property
    def starts_upon(self) -> str | None:
        """The option `beneath`."""
        return self.beneath

    @property
    def trains_rows(self) -> bool:
        """Where there are `trainable_tokens`."""
        return self.trainable_tokens is not None

    def training_tokens(self, tokens: Sequence[int]) -> LoRA:
        """The same with these among `trainable_tokens`; itself where embedding and head train whole."""
        whole = {name.rpartition(".")[2] for name in self.modules_to_save or ()}
        if self.trainable_tokens is None and whole & EMBEDDINGS and whole & HEADS:
            return self
        named = self.trainable_tokens or []
        return replace(self, trainable_tokens=[*named, *(token for token in tokens if token not in named)])

    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """The model as a `PeftModel` with A and B in float32 beside every target, everything else frozen.

        Raises:
            UsageError: no layer has one of the names in `target_modules`, or `init` does not go with the layers.
        """
        from lightning_ft_methods.fused import fuse

        self._check_rows(model)
        if (self.init == "loftq") != is_quantized(model) and self.init in ("pissa", "olora", "loftq"):
            stored = "a quantised base" if self.init == "loftq" else "a base that is not quantised"
            raise UsageError(
                f"Expected {stored} for --method.init {self.init}, got {'none' if self.init == 'loftq' else 'one'}; "
                f"{'add --quantize nf4' if self.init == 'loftq' else 'type --method.init loftq'}, or leave --method.init out."
            )
        if self.bias != "none" and is_quantized(model):
            raise UsageError(
                "Expected --method.bias none on a quantised base, whose layers round their biases as they compute; got "
                f"{self.bias}."
            )
        if self.beneath is not None and self.trainable_tokens is not None:
            raise UsageError("Expected --method.beneath without --method.trainable_tokens, which both would have; got both.")
        if self.init == "olora" and has_conv1d(model):
            raise UsageError("Expected --method.init default, gaussian, orthogonal or pissa for Conv1D layers; got olora.")
        adapted = super().attach(model, total_steps)
        fuse(adapted)
        return adapted

    def _check_rows(self, model: nn.Module) -> None:
        """Refuse rows of tokens beside what changes all rows of the same matrix, by whichever name the user gives it.

        Both the embedding and the head count: they share one matrix, or each has rows of its own.
        """
        if self.trainable_tokens is None:
            return
        outer = outer_paths(model)
        adapted = [] if self.target_modules == "all-linear" else targets(self.target_modules)
        taken = [name for name in adapted if any(is_named(path, name) for path in outer)]
        # A module that trains whole may also hold the matrix, as `model` does.
        within = [path[:end] for path in outer for end in range(len(path) + 1) if path[end : end + 1] in ("", ".")]
        taken += [name for name in self.modules_to_save or () if any(is_named(path, name) for path in within)]
        if taken:
            raise UsageError(
                f"Expected --method.trainable_tokens without '{min(taken)}' in --method.modules_to_save or "
                "--method.target_modules, which changes all of its rows; got both."
            )

    def start(self, model: nn.Module) -> None:
        """LoftQ's, and upon the adapter beneath, where they are asked for."""
        if self.init == "loftq":
            from lightning_ft_methods.loftq import start_from_residual

            start_from_residual(model)
        if self.beneath is not None:
            from lightning_ft_methods.beneath import lay_beneath

            lay_beneath(model, self.beneath)

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]] | None:
        """With `plus_ratio`, B in a group of its own at `plus_ratio * learning_rate`; else None."""
        if self.plus_ratio is None:
            return None
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        fast = [p for name, p in named if "lora_B" in name or "lora_embedding_B" in name]
        slow = [p for name, p in named if not ("lora_B" in name or "lora_embedding_B" in name)]
        return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": learning_rate * self.plus_ratio}]

    def peft_config(self, model: nn.Module, total_steps: int) -> LoraConfig:
        """Peft's `LoraConfig`."""
        from peft import LoraConfig

        together = self._whole_together(model)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # peft divides it, any number does
            lora_dropout=self.dropout,
            target_modules=targets(self.target_modules),
            bias=self.bias,
            # A copy: peft rewrites the lists that it is given.
            modules_to_save=None if self.modules_to_save is None else [*self.modules_to_save, *(together or ())],
            trainable_token_indices=None if self.trainable_tokens is None else token_rows(model, self.trainable_tokens),
            # LoftQ's start is ours: peft's own needs a GPU and forgets the scale.
            init_lora_weights=True if self.init in ("default", "loftq") else self.init,  # type: ignore[arg-type]  # the others
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            fan_in_fan_out=has_conv1d(model),
            # One matrix in the model stays one in training; peft would train a copy of it and untie the merged model.
            ensure_weight_tying=together is not None,
        )

    def _whole_together(self, model: nn.Module) -> list[str] | None:
        """What peft has to be told besides, so that embedding and head train whole as one matrix; None: they do not.

        It finds the shared matrix by the names in `TIED` alone.
        """
        named, outer = self.modules_to_save or (), outer_paths(model)
        tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
        if not tied or not any(is_named(path, name) for path in outer for name in named):
            return None
        if any(name.rpartition(".")[2] in TIED for name in named):
            return []
        return [path for path in outer if path.rpartition(".")[2] in TIED][:1]
