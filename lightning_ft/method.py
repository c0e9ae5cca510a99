"""The contract of a fine-tuning method: what it adds to a model, what of it trains, what is saved."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import NotMergeableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True)
class Method(ABC):
    """A way to make a pretrained model trainable.

    Subclasses are frozen dataclasses: every field is an option (`--method.rank 32`), with its docstring beneath it
    and its range checked in `__post_init__`. An instance holds no state: the model it returned from `attach` does.
    """

    name: ClassVar[str]
    """What users type, case-insensitively."""
    default: ClassVar[bool] = False
    """Whether this method is taken when none is named (one installed method may say so)."""
    quickstart: ClassVar[Mapping[str, Any]] = {}
    """What suits the small model that is shipped: everyday options, and own ones under `method`."""
    learning_rate: ClassVar[float | None] = None
    """Rate where the user names none; None: 2e-4 beside frozen weights, 2e-5 for base weights."""
    schedule: ClassVar[frozenset[str]] = frozenset()
    """Numbers in a saved adapter's config that belong to its run, and do not hinder another one from training it on."""
    starts_as_base: ClassVar[bool] = True
    """False where the model computes something else than the base before the first step (vectors before each row)."""
    can_pack: ClassVar[bool] = True
    """False where documents of a packed row would see each other (prompt learning)."""
    can_checkpoint: ClassVar[bool] = True
    """False where activation checkpointing changes the result or fails (prefix tuning)."""
    can_continue: ClassVar[bool] = True
    """False where a saved adapter lacks what is needed to train it on in another run (an encoder of its vectors)."""
    trains_base: ClassVar[bool] = False
    """True where base weights themselves train, so that they are kept in float32 and saved whole."""

    can_shard: ClassVar[bool] = False
    """True where each process may have a part of every matrix (FSDP2): nothing but the model's own passes reads them whole."""
    trains_in_turns: ClassVar[bool] = False
    """True where `before_step` lets other parameters train than before; between ranks that takes looking for them."""

    @property
    def starts_upon(self) -> str | None:
        """An adapter that takes part from the beginning, as users name it; None: training begins with the base model."""
        return None

    @property
    def trains_rows(self) -> bool:
        """Whether rows of tokens train beside a matrix, which then cannot lie in parts (FSDP2)."""
        return False

    @property
    def leading_positions(self) -> int:
        """Positions of the context that the method takes before every row."""
        return 0

    @abstractmethod
    def attach(self, model: nn.Module, total_steps: int) -> nn.Module:
        """Add the method's parameters to `model`, freeze the rest, and return the model to train."""

    def training_tokens(self, tokens: Sequence[int]) -> Method | None:
        """This method, so that the rows of these tokens train too, in the embedding and in a head of its own; None: it cannot.

        Args:
            tokens: Ids that the tokenizer got for this run. Their rows are new, and nothing else makes them of any use.
        """
        return None

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What a checkpoint must hold of the model, by name. Default: every parameter that requires a gradient."""
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned.

        Raises:
            ValueError: a name in `state` is not a trainable parameter of the model, or the other way round.
        """
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())[:3]
            raise ValueError(f"The checkpoint's parameters are not those of method {self.name}: {', '.join(odd)} ...")
        for name, p in own.items():
            p.data.copy_(state[name])

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What else a resumed run needs, by name: statistics, masks, parameters that a saved model leaves out."""
        return {}

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - optional: nothing by default
        """Put back what `training_state` returned; called after `load_trainable_state`."""

    def merge(self, model: nn.Module) -> nn.Module:
        """A plain base model with the method's change folded in; where base weights train, the model itself.

        Raises:
            NotMergeableError: the change is no change of weights.
        """
        if self.trains_base:
            return model
        raise NotMergeableError(f"Method {self.name} cannot be merged into the base weights; serve the adapter as it is.")

    @contextlib.contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as it was before training, for the length of a `with` block (what a reward is measured from, KL terms).

        Raises:
            NotImplementedError: the base weights themselves changed; a second copy has to be loaded.
        """
        raise NotImplementedError(f"Method {self.name} changes the base weights, so the model before training is gone.")
        yield model

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]] | None:
        """Optimiser groups of its own (`{"params": [...], "lr": ...}`), or None for those of `optim.param_groups`."""
        return None

    def regularizer(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the loss once per optimiser step, or None."""
        return None

    def before_step(self, model: nn.Module, step: int) -> Collection[nn.Parameter]:
        """Called before the first forward pass of optimiser step `step` (0-based); must depend on nothing else.

        Returns parameters whose optimiser state is to be dropped.
        """
        return ()

    def on_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - optional: nothing by default
        """Called after optimiser step `step` (0-based), while the gradients still exist."""
