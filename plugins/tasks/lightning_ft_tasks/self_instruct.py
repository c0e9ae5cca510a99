"""Instructions with several instances each, as Self-Instruct's seed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import json_name
from lightning_ft_tasks.instruct import Instruct

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class SelfInstruct(Instruct):
    """`{"instruction", "instances": [{"input", "output"}, ...]}` (Wang et al. 2022, arXiv:2212.10560): a pair per instance."""

    name: ClassVar[str] = "self_instruct"
    precedence: ClassVar[int] = 20
    columns_help: ClassVar[str] = "instruction, instances (a list of input and output)"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"instruction": "Double it.", "instances": [{"input": "1", "output": "2"}, {"input": "4", "output": "8"}], "id": "a"},
        {"instruction": "Say a colour.", "instances": [{"input": "", "output": "Red."}]},
    )
    """Rows as the task reads them."""

    @classmethod
    def matches(cls, columns: frozenset[str]) -> bool:
        """Rows with an instruction and its instances."""
        return columns >= {"instruction", "instances"}

    def unfold(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """A row with `instruction`, `input` and `output` for each instance."""
        if "instruction" not in row:
            raise ValueError(f"expected a column 'instruction', got {', '.join(row) or 'none'}")
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise ValueError(f"expected 'instances' to be a list with at least one of input and output, got {instances!r:.80}")
        common = {key: value for key, value in row.items() if key != "instances"}
        for number, instance in enumerate(instances, 1):
            if not isinstance(instance, Mapping):
                raise ValueError(f"expected instance {number} to be an object, got {json_name(instance)}")
        return [{**common, **instance} for instance in instances]
