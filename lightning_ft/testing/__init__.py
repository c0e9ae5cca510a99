"""The public kit with which plugins test themselves.

```python
from lightning_ft.testing import check_method

def test_contract():
    check_method(MyMethod)
```

`check_method`, `check_task`, `check_metric` and `check_objective` run every clause of a contract and raise an
`AssertionError` that names the clause. `lightning_ft.testing.fixtures` is a pytest plugin (tiny models, real data,
registry). Nothing is imported before it is used, as pytest imports this package at every start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ft.testing.checks import check_metric, check_task
    from lightning_ft.testing.methods import check_method
    from lightning_ft.testing.models import tiny_backbone_folder, tiny_gpt2, tiny_llama, tiny_model, tiny_tokenizer
    from lightning_ft.testing.objectives import check_objective

__all__ = [
    "check_method",
    "check_metric",
    "check_objective",
    "check_task",
    "tiny_backbone_folder",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_model",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module 'lightning_ft.testing' has no attribute '{name}'")
    homes = {"check_method": "methods", "check_objective": "objectives", "check_metric": "checks", "check_task": "checks"}
    return getattr(importlib.import_module(f"lightning_ft.testing.{homes.get(name, 'models')}"), name)
