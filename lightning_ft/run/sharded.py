"""Lightning's strategy for models of which each process has a part, with checkpoints that any number of processes goes on from.

The model is saved whole, as under every strategy. The optimiser's state is saved in parts, by the process that has each, and
read again in whatever parts it is needed in. All of it is safetensors and JSON.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightning_ft.atomic import REFUSED, not_written, whole_folder
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.meeting import LEAST, wait_from_now_on
from lightning_ft.run.state import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from lightning_ft.module import FineTuner

T = TypeVar("T")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2, tensor parallel, or both.

    Args:
        data_size: Processes that see different rows.
        together: Processes that hold each layer together.
        wait: How long the others are waited for.
    """

    def __init__(self, data_size: int, together: int, wait: timedelta) -> None:
        backend = None if torch.cuda.is_available() else "gloo"
        super().__init__(data_size, together, process_group_backend=backend, timeout=max(wait, LEAST))
        self.wait = wait

    def setup_environment(self) -> None:
        """As Lightning's; a mesh of two sides makes groups that would wait for half an hour."""
        super().setup_environment()
        wait_from_now_on(self.wait, self.device_mesh.get_all_groups())

    @property
    def module(self) -> FineTuner:
        """What is trained."""
        return self.lightning_module  # type: ignore[return-value]  # the only module that is trained with this strategy

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the model is saved by its own format, in `save_checkpoint`."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Nothing: saved in parts, in `save_checkpoint`."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the folder: every process its parts, the first one the model and what is the same everywhere."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        io, path = self.checkpoint_io, Path(self.broadcast(str(filepath)))
        assert isinstance(io, FolderCheckpoint)
        model = io.gather(keep=self.is_global_zero)
        tensors, checkpoint["sharded_optimizer"] = self._optimizer_state()
        with contextlib.ExitStack() as stack:
            begin = (lambda: str(stack.enter_context(whole_folder(path)))) if self.is_global_zero else (lambda: "")
            folder = Path(everywhere(begin)[0])
            with _told(path):
                save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder / PARTS), save_distributed=True))
            everywhere(lambda: io.write(checkpoint, folder, model) if self.is_global_zero else None)
            everywhere(stack.close)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what is the same everywhere, and of the optimiser's state the parts of this process.

        Raises:
            UsageError: the checkpoint is of a run without parts.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        path = Path(self.broadcast(str(checkpoint_path)))
        checkpoint = self.checkpoint_io.load_checkpoint(path)
        values = checkpoint.pop("sharded_optimizer", None)
        if values is None:
            raise UsageError(f"Expected a checkpoint of a sharded run in '{path}'; type the --strategy that it was written by.")
        tensors, _ = self._optimizer_state()
        with _told(path):
            load(tensors, storage_reader=HuggingFaceStorageReader(str(path / PARTS)))
        for scheduler in checkpoint.get("lr_schedulers", ()):
            scheduler.pop("base_lrs")  # one of each group, of which there may be more or fewer where layers are cut otherwise
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        for optimizer in self.optimizers:
            flat: Any = {**tensors, **values}
            set_optimizer_state_dict(self.module.model, optimizer, flat, options=options)
        return checkpoint

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """By the parameters' names: tensors, of which each process has its part, and plain values."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(flatten_optimizer_state_dict=True)
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for optimizer in self.optimizers:
            for name, value in get_optimizer_state_dict(self.module.model, optimizer, options=options).items():
                (tensors if isinstance(value, Tensor) else values)[name] = value
        return tensors, values


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what went wrong with the parts of a checkpoint; torch wraps it in what is no `Exception`, in all processes.

    Raises:
        TrainingError: something did.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        refused = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno in REFUSED), None)
        if refused is not None:
            raise not_written(path, refused) from error
        raise TrainingError(
            f"{path}: expected parts of a checkpoint that can be written and read, got: {causes[0]}."
        ) from error


def everywhere(work: Callable[[], T]) -> list[T]:
    """What the work returns in every process, once it is done in all of them.

    Raises:
        TrainingError: it failed in another process; where it failed here, that error.
    """
    result: Any = None
    mine: Exception | None = None
    try:
        result = work()
    except Exception as error:
        mine = error
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, (result, None if mine is None else f"{type(mine).__name__}: {mine}"))
    if mine is not None:
        raise mine
    for rank, (_, said) in enumerate(found):
        if said is not None:
            raise TrainingError(f"Process {rank} failed: {said}")
    return [value for value, _ in found]
