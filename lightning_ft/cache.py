"""Where encoded data, links to downloaded data and compiled kernels are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$LIGHTNING_FT_CACHE`, which takes what may be large, else `user_cache`."""
    own = os.environ.get("LIGHTNING_FT_CACHE")
    return Path(own) if own else user_cache()


def user_cache() -> Path:
    """lightning-ft under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-ft"
