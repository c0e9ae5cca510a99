"""Soft prompts: vectors that are learned in front of the input, or in front of the keys and values of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from lightning_ft.errors import NotMergeableError, UsageError
from lightning_ft.method import Method
from lightning_ft_methods.adapter import Adapter, check_choice, check_share, check_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from torch import Tensor, nn

Init = Literal["vocabulary", "text", "random"]
Encoder = Literal["mlp", "lstm"]


@dataclass(frozen=True)
class SoftPrompt(Adapter):
    """What all of them have in common: they change no weights, and documents of a packed row would share them."""

    starts_as_base: ClassVar[bool] = False
    can_pack: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-2

    virtual_tokens: int = 20
    """How many vectors are learned; they take as many positions of the context."""

    def __post_init__(self) -> None:
        check_whole("virtual_tokens", self.virtual_tokens)

    @property
    def leading_positions(self) -> int:
        """The option `virtual_tokens`."""
        return self.virtual_tokens

    def merge(self, model: nn.Module) -> nn.Module:
        """Never.

        Raises:
            NotMergeableError: always.
        """
        raise NotMergeableError(
            f"Method {self.name} adds inputs, not weights, so there is nothing to merge; serve the adapter."
        )


@dataclass(frozen=True)
class PromptTuning(SoftPrompt):
    """Learn input vectors P in front of the embedded text: f([P; E(x)]), P: (virtual_tokens, hidden_size).

    (Lester et al. 2021, arXiv:2104.08691, section 2.)
    """

    name: ClassVar[str] = "prompt_tuning"

    init: Init = "vocabulary"
    """Where P starts: vectors of tokens drawn from the vocabulary; those of `init_text`; or uniform random numbers."""
    init_text: str | None = None
    """With `init=text`: a text whose tokens, repeated or cut to `virtual_tokens`, are the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init", self.init, get_args(Init))
        if (self.init == "text") != bool(self.init_text and self.init_text.strip()):
            got = f"init={self.init} and init_text={self.init_text!r}"
            raise UsageError(f"Expected --method.init text together with --method.init_text TEXT; got {got}.")

    def peft_config(self, model: nn.Module, total_steps: int) -> PromptTuningConfig:
        """Peft's `PromptTuningConfig`.

        Raises:
            UsageError: `init=text` for a model without a folder, where its tokenizer would be.
        """
        from peft import PromptTuningConfig

        folder = getattr(model, "name_or_path", "")
        if self.init == "text" and not folder:
            raise UsageError(
                "Expected a model from a folder or the hub for --method.init text, which needs its tokenizer; got none."
            )
        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.virtual_tokens,
            prompt_tuning_init={"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}[self.init],
            prompt_tuning_init_text=self.init_text,
            tokenizer_name_or_path=folder if self.init == "text" else None,
        )


@dataclass(frozen=True)
class PTuningV2(SoftPrompt):
    """Learn keys and values in front of those of every layer, without an encoder (Liu et al. 2021, arXiv:2110.07602).

    Attention of layer l sees [K_l; k(x)] and [V_l; v(x)]; K_l and V_l: (virtual_tokens, key and value width).
    """

    name: ClassVar[str] = "p_tuning_v2"
    can_checkpoint: ClassVar[bool] = False

    def peft_config(self, model: nn.Module, total_steps: int) -> PrefixTuningConfig:
        """Peft's `PrefixTuningConfig` without projection."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens, prefix_projection=False)


@dataclass(frozen=True)
class Encoded(SoftPrompt):
    """Soft prompts that an encoder makes in training, and that alone are saved."""

    can_continue: ClassVar[bool] = False

    encoder_size: int = 128
    """Width of the encoder's hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("encoder_size", self.encoder_size)

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The encoder and what it reads."""
        return Method.trainable_state(self, model)

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned; a saved prompt is passed over, as it has no encoder.

        Raises:
            ValueError: a name in `state` is not one of the method's, or the other way round.
        """
        if state.keys() == {"prompt_embeddings"}:
            return  # `load_training_state` follows
        Method.load_trainable_state(self, model, state)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The encoder, which the saved prompt does not have."""
        return self.trainable_state(model)

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `training_state` returned."""
        self.load_trainable_state(model, state)


@dataclass(frozen=True)
class PrefixTuning(Encoded):
    """As P-tuning v2, but the keys and values of all layers come from an encoder, which makes training steadier.

    [K; V] = MLP(P) with a hidden layer of `encoder_size` and tanh (Li and Liang 2021, arXiv:2101.00190, section 4.3). Only K
    and V are saved.
    """

    name: ClassVar[str] = "prefix_tuning"
    can_checkpoint: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = 1e-3

    def peft_config(self, model: nn.Module, total_steps: int) -> PrefixTuningConfig:
        """Peft's `PrefixTuningConfig` with projection."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens, prefix_projection=True,
            encoder_hidden_size=self.encoder_size,
        )  # fmt: skip


@dataclass(frozen=True)
class PTuning(Encoded):
    """As prompt tuning, but the input vectors come from an encoder of learned ones.

    MLP(P) of three layers, or an MLP of a bidirectional LSTM (Liu et al. 2021, arXiv:2103.10385, section 3.2). Only the vectors
    are saved.
    """

    name: ClassVar[str] = "p_tuning"
    learning_rate: ClassVar[float | None] = 1e-3

    encoder: Encoder = "mlp"
    """mlp, or lstm as in the paper."""
    dropout: float = 0.0
    """Dropout within the lstm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("encoder", self.encoder, get_args(Encoder))
        check_share("dropout", self.dropout)
        if self.dropout and self.encoder == "mlp":
            raise UsageError(f"Expected --method.dropout 0 for --method.encoder mlp, which has none; got {self.dropout}.")

    def peft_config(self, model: nn.Module, total_steps: int) -> PromptEncoderConfig:
        """Peft's `PromptEncoderConfig`."""
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens, encoder_hidden_size=self.encoder_size,
            encoder_reparameterization_type=self.encoder.upper(), encoder_dropout=self.dropout,
        )  # fmt: skip

    def start(self, model: nn.Module) -> None:
        """The encoder computes in float32 also under autocast: not every processor has an LSTM of bfloat16."""
        import torch

        for encoder in model.prompt_encoder.values():  # type: ignore[operator]  # a PeftModel's ModuleDict
            inner = encoder.forward

            def forward(indices: Tensor, inner: Any = inner) -> Tensor:
                with torch.autocast(indices.device.type, enabled=False):
                    found: Tensor = inner(indices)
                return found

            encoder.forward = forward
