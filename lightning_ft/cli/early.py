"""Names that lead nowhere are told at once: before libraries are loaded, which takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft.data.hub import is_hub_id
from lightning_ft.data.sources import expand
from lightning_ft.loading import locate

if TYPE_CHECKING:
    from collections.abc import Sequence


def look(model: str, data: Sequence[str] = ()) -> None:
    """Look for what is named on this machine; a hub is asked later.

    Raises:
        UsageError: no such model. DataError: no such file.
    """
    locate(model)
    here = [name for name in data if not is_hub_id(name)]
    if here:
        expand(here)
