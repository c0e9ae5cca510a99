"""What the person who runs a fine-tuning gets to read: our lines, and not every hint of every library."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NOISE = (
    ".*does not have many workers.*",  # collating is a few array copies; workers cost more than they give
    ".*lr_scheduler.step.*before.*optimizer.step.*",  # the preflight's trial step, taken back afterwards
    ".*number of training batches.*smaller than the logging interval.*",  # we log by our own callback
    ".*Checkpoint directory .* exists.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",  # lightning calls a deprecated torch function
    ".*You requested to overfit but enabled.*",
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",  # every value that we log is already a mean
    ".*found .* module.* in eval mode.*",
    ".*resuming from a checkpoint that ended before the epoch.*",  # our sampler begins at the step that the run is at
    ".*attribute of a Tensor that is not a leaf Tensor is being accessed.*",  # torch.compile looks at all there is of a tensor,
    ".*autograd.function.Function.* should not be instantiated.*",  # and makes an object of an autograd function
    ".*It is recommended to use `self.log.*sync_dist=True.*",  # what we log is summed over ranks already
    "FSDP2-wrapped module .* returned a view tensor",  # the states for the loss, in which nothing is written
)


LOGGERS = ("lightning.pytorch", "lightning.fabric", "torch.distributed.tensor._redistribute")
"""Whose lines are hints: Lightning's, and of how fast a matrix that is cut and spread is gathered for a save."""


def say(line: str) -> None:
    """A line for the person, on stderr so that results can be piped."""
    print(line, file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """Nothing: for the processes that have nothing to say."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within it Lightning's hints and progress lines are not shown; warnings of substance still are."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar per saved file says nothing during training
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for pattern in NOISE:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
