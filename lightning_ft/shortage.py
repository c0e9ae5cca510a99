"""Out of memory in a step: the same step is run again in micro-batches of half as many rows, on all ranks alike.

An allocation fails on the host, at the moment of the call, also where the work is done by a GPU. So ranks can agree on whether
anybody has run out without waiting for a GPU: one small message between hosts, once a step, and none on a single rank.

Under DDP ranks meet in the reduction of gradients. A rank that has run out takes part in it with what it has, since the others
wait there, and after it all of them learn that the step counts for nothing.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from lightning_ft.data.halve import cut, halved
from lightning_ft.errors import NoMemoryError, out_of_memory
from lightning_ft.types import Batch, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class RunAgainError(Exception):
    """The step counts for nothing and has to be run again; caught around the step, never seen by anybody."""


def memory_advice(error: BaseException) -> str:
    """The sentence for it."""
    if isinstance(error, NoMemoryError):
        return str(error)
    return (
        f"The memory does not suffice for a micro-batch ({first_line(error)}); lower --batch_tokens or --max_length, or type "
        "--gradient_checkpointing true."
    )


def first_line(error: BaseException) -> str:
    """What it says, without what torch adds in further lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


class _StandIn(torch.autograd.Function):
    """A loss that does not depend on the parameters, whose backward pass reports all of them as ready."""

    @staticmethod
    def forward(ctx: Any, *params: Tensor) -> Tensor:
        ctx.count = len(params)
        return params[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return (*(None for _ in range(ctx.count)),)


class Shortage:
    """What a run knows of its memory, and how its ranks agree on that.

    Args:
        told: Called with the 0-based step and the number of parts whenever micro-batches become smaller.
    """

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self.told = told
        self.parts = 1
        """Into how many parts every scheduled micro-batch is cut; a power of 2, in a checkpoint."""
        self.step: Step | None = None
        """The step that runs."""
        self.strategy: Any = None
        """Lightning's, of the run."""
        self._known = 1
        self._failed: tuple[str, int] | None = None
        self._versions: dict[nn.Parameter, int | None] = {}
        self._group: Any = None

    @property
    def survives(self) -> bool:
        """Whether a step can be run again: with sharded parameters ranks meet at places where nobody could stand in."""
        return isinstance(self.strategy, (SingleDeviceStrategy, DDPStrategy))

    @property
    def _alone(self) -> bool:
        return not (torch.distributed.is_available() and torch.distributed.is_initialized())

    def go_on(self, parts: int) -> None:
        """Take up a run that has cut its micro-batches into so many parts."""
        self.parts = self._known = parts

    # ---- the step -------------------------------------------------------------------------------------------------

    def cut(self, step: Step) -> Step:
        """The step in micro-batches that are as small as they have to be."""
        return step if self.parts == 1 else Step(step.number, cut(step.micro, self.parts), step.totals)

    def note(self, error: Exception, batch: Batch) -> None:
        """Take note that a micro-batch was too large; call it in the `except` block, and go on outside of it.

        Raises:
            Exception: the error itself, if it is another one or cannot be survived.
        """
        if not out_of_memory(error) or not self.survives:
            raise error
        rows = ", ".join(dict.fromkeys(batch.rows))
        tokens = sum(batch.lengths) or batch.input_ids.numel()
        said = (
            f"The memory does not suffice for row {rows} of {tokens} tokens, alone in its micro-batch ({first_line(error)}); "
            f"lower --max_length, or type --gradient_checkpointing true."
        )
        self._failed = said, len(halved((batch,)))

    def stand_in(self, params: Sequence[nn.Parameter]) -> Tensor:
        """A loss in place of one that found no room, with which this rank takes part in the reduction of gradients.

        Raises:
            RunAgainError: there are no other ranks that wait.
            NoMemoryError: as of `agree`.
        """
        free()
        if self._alone:
            self.agree()
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return _StandIn.apply(*params)  # type: ignore[no-any-return, no-untyped-call]  # torch has no types for it

    def before_last(self, params: Sequence[nn.Parameter]) -> None:
        """Remember the gradients, before the backward pass in which ranks reduce them."""
        if not self._alone and self.survives:
            self._versions = {p: _version(p.grad) for p in params}

    def finish(self) -> None:
        """Take part in what is left of the reduction, after a backward pass that broke off.

        DDP counts the parameters whose gradients have come; here come the others. Each of them was accumulated and counted, or
        neither.
        """
        free()
        left = [p for p, version in self._versions.items() if p.requires_grad and _version(p.grad) == version]
        self._versions = {}
        if left:
            self.stand_in(left).backward()  # type: ignore[no-untyped-call]  # torch has no types for it

    @property
    def failed(self) -> bool:
        """Whether this rank has run out of memory in this step."""
        return self._failed is not None

    def agree(self) -> None:
        """Whether all ranks had room for the step.

        Raises:
            RunAgainError: somebody had not; from now on every micro-batch is cut into twice as many parts.
            NoMemoryError: somebody had not, for a single row.
        """
        if not self.survives:
            return
        failed, self._failed = self._failed, None
        state = 0 if failed is None else 1 if failed[1] > 1 else 2
        if not self._alone:
            found = torch.tensor([state, self.parts])
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.hosts())
            state, self.parts = found.tolist()
        if state == 2:
            said = [failed[0] if failed is not None and failed[1] == 1 else ""]
            if not self._alone:
                said = [""] * torch.distributed.get_world_size()
                own = failed[0] if failed is not None and failed[1] == 1 else ""
                torch.distributed.all_gather_object(said, own, group=self.hosts())
            raise NoMemoryError(next(filter(None, said)), whole=True)
        if state == 1:
            self.parts *= 2
        self._tell()
        if state == 1:
            raise RunAgainError

    def _tell(self) -> None:
        if self.parts != self._known and self.step is not None:
            self.told(self.step.number, self.parts)
        self._known = self.parts

    def again(self) -> None:
        """Cut the step that runs as it was agreed."""
        free()
        assert self.step is not None
        self.step.micro = halved(self.step.micro)

    def hosts(self) -> Any:
        """A group in which hosts talk without their GPUs; made by all ranks at their first step."""
        if self._group is None:
            gloo = torch.distributed.get_backend() == "gloo"
            wait = getattr(self.strategy, "wait", None)  # as long as the strategy's own group waits
            self._group = torch.distributed.group.WORLD if gloo else torch.distributed.new_group(None, wait, backend="gloo")
        return self._group

    # ---- the update -----------------------------------------------------------------------------------------------

    def update_again(self, optimizer: torch.optim.Optimizer, before: Untouched | None, error: str) -> None:
        """Make the optimiser's update once more, from the same gradients, after all memory that can be had is one piece.

        The gradients are whole, and the other ranks may have updated already, so that nothing else is run again. In the next
        step there is less room than there was, by the optimiser's states: its micro-batches are smaller.

        Raises:
            NoMemoryError: there is still no room, or something has been updated, or perhaps, so that it cannot be done again.
        """
        number = 0 if self.step is None else self.step.number
        said = (
            f"The memory does not suffice for the optimiser's update of step {number + 1} ({error}); name an optimiser with "
            "smaller states by --optimizer, or a --method that trains fewer weights."
        )
        if before is None or not before.restore():
            raise NoMemoryError(said, whole=False)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        aside = [p.grad.cpu() for p in params if p.grad is not None]
        for p in params:
            p.grad = None
        free()
        for p, grad in zip(params, aside, strict=True):
            p.grad = grad.to(p.device)
        try:
            optimizer.step()
        except (RuntimeError, MemoryError) as again:
            if not out_of_memory(again):
                raise
            whole = self._alone and before.restore()
            raise NoMemoryError(said, whole=whole) from again
        self.parts *= 2
        if self._alone:
            self._tell()  # other ranks learn of it with the next step


class Untouched:
    """Parameters and an optimiser that has no states yet, before its first update: whether that has changed anything."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        fused = any(group.get("fused") for group in optimizer.param_groups)
        # A fused kernel leaves the versions of parameters as they are; Adam counts a step before it starts one.
        self.sure = type(optimizer).__module__.startswith("torch.optim") and (
            not fused or isinstance(optimizer, torch.optim.Adam)
        )
        self.groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [p._version for group in self.optimizer.param_groups for p in group["params"]]

    def restore(self) -> bool:
        """Whether no parameter has been changed; then the states that were made are dropped."""
        counted = any(float(state.get("step", 0)) for state in self.optimizer.state.values())
        if not self.sure or counted or self.versions != self._versions():
            return False
        self.optimizer.state.clear()
        for group, values in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(values)
        return True


def _version(grad: Tensor | None) -> int | None:
    return None if grad is None else grad._version


def free() -> None:
    """Give back all memory that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
