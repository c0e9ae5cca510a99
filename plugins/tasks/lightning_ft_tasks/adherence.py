"""Whether answers do what was asked of their form: shares of constraints and of rows that are met, as IFEval counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.metric import Metric
from lightning_ft.types import Conversation
from lightning_ft_tasks.answers import answer_of
from lightning_ft_tasks.constraints import constraints_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_ft.types import ScoredRow


class Adherence(Metric):
    """Share of constraints that are met, over all constraints of all rows.

    IFEval's instruction-level strict accuracy (Zhou et al. 2023, arXiv:2311.07911, section 2.2). Two rows with 3 and 1
    constraints, of which 2 and 1 are met: 3 / 4. A row without constraints counts for nothing, an empty answer meets none.
    """

    name: ClassVar[str] = "adherence"
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "right": "all small",
            "wrong": "Not So, no",
            "reference": "small",
            "constraints": [{"type": "lower_case"}, {"type": "no_commas"}],
        },
    )
    percent: ClassVar[bool] = True
    per_row: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """Which accuracy of IFEval it is."""
        return "ifeval:strict|level:instruction|lang:frequent_words|sentences:rules"

    def check(self, row: ScoredRow) -> None:
        """Refuse a row that states a constraint of an unknown type or with a wrong option."""
        try:
            constraints_of(row.example.meta)
        except ValueError as error:
            raise ValueError(f"{row.row}: {error}") from None

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """Constraints met, and constraints.

        Raises:
            ValueError: as `check`; also where nothing was generated.
        """
        met = met_by(row)
        return (float(sum(met)), float(len(met)))


class Completion(Adherence):
    """Share of rows all of whose constraints are met, over the rows that have any.

    IFEval's prompt-level strict accuracy (Zhou et al. 2023, arXiv:2311.07911, section 2.2). Two rows with 3 and 1
    constraints, of which 2 and 1 are met: 1 / 2.
    """

    name: ClassVar[str] = "completion"

    @property
    def signature(self) -> str:
        """Which accuracy of IFEval it is."""
        return super().signature.replace("instruction", "prompt")

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """1 where all are met, and 1 where there are any."""
        met = met_by(row)
        return (float(bool(met) and all(met)), float(bool(met)))


def met_by(row: ScoredRow) -> list[bool]:
    """For each constraint of a row whether its generated answer meets it.

    Raises:
        ValueError: a constraint is wrong, or nothing was generated; the message begins with the row.
    """
    answer = answer_of(row, Adherence.name)
    try:
        constraints = constraints_of(row.example.meta)
    except ValueError as error:
        raise ValueError(f"{row.row}: {error}") from None
    prompt = asked_in(row)
    return [constraint.met(answer, prompt) for constraint in constraints]


def asked_in(row: ScoredRow) -> str:
    """What the user said last before the answer."""
    if not isinstance(row.example, Conversation):
        return row.prompt or ""
    return next((turn.content for turn in reversed(row.example.messages) if turn.role == "user"), row.prompt or "")
