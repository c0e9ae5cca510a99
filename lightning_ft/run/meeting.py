"""Processes that start far apart meet all the same; from then on a silent one is waited for as long as the user says."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST = timedelta(minutes=10)
"""As long the others are waited for at the start: they may import and load from a slow disk, or come up on another machine."""


def wait_from_now_on(wait: timedelta, groups: Sequence[Any] = ()) -> None:
    """How long what the default group, and these, do may take."""
    for group in (None, *groups):
        torch.distributed.distributed_c10d._set_pg_timeout(wait, group)


class PatientDDP(DDPStrategy):
    """Lightning's DDP, whose processes have time to meet.

    Args:
        wait: How long the others are waited for after that.
        **options: Of Lightning's.
    """

    def __init__(self, wait: timedelta, **options: Any) -> None:
        super().__init__(timeout=max(wait, LEAST), **options)
        self.wait = wait

    def setup_environment(self) -> None:
        """As Lightning's."""
        super().setup_environment()
        wait_from_now_on(self.wait)
