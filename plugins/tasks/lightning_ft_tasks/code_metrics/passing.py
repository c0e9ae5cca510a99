"""Do the programs that a model wrote pass their tests: pass@k, by running them in the sandbox."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_ft.errors import json_name
from lightning_ft.metric import Metric
from lightning_ft.threads import quota
from lightning_ft_tasks.answers import answer_of
from lightning_ft_tasks.code_metrics import sandbox
from lightning_ft_tasks.code_metrics.grammar import language_of
from lightning_ft_tasks.code_metrics.programs import names_of, program_of, python_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_ft.types import ScoredRow

_LONG = 30
"""Programs from which on a line tells how far they are."""
_LISTS = ("tests", "test_list")
"""Columns that may hold tests as a list, first match wins."""


class PassAt1(Metric):
    """pass@k for k = 1: the chance that one of k answers to a task, drawn from its n, passes all tests; mean over tasks.

    Estimated without bias from the c of n answers that pass, 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374,
    equation 1). Answers of equal column `task_id`, else of equal prompt, are those of one task; its number stands with the
    first of them, the others have zeros. So with one answer a row it is the share of rows that pass.

    Tests are the row's column `test` (code; where it defines `check`, that is called with the function of the column
    `entry_point`, as HumanEval has it) or `tests` (`test_list`), a list of statements after `test_setup_code`, as MBPP has it.
    Code is only ever run in the sandbox and with permission.
    """

    name: ClassVar[str] = "pass_at_1"
    percent: ClassVar[bool] = True
    k: ClassVar[int] = 1
    """Answers that are drawn."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.estimates: dict[str, float | None] = {}
        """By row: the estimate of its task with the first, None with the others."""

    @property
    def signature(self) -> str:
        """The Python that ran the code, and its limits."""
        limits = sandbox.Limits()
        return f"unbiased|{sandbox.python_version()}|{limits.seconds:g} s|{limits.memory >> 20} MiB"

    def check(self, row: ScoredRow) -> None:
        """See to it that there are tests of Python code, and that they may be run.

        Raises:
            ValueError: they are missing, permission is, or there is no sandbox.
        """
        language_of(row, ("python",))
        checks_of(row)
        said = sandbox.obstacle()
        if said:
            raise ValueError(f"{row.row}: {said}")

    def check_all(self, rows: Sequence[ScoredRow]) -> None:
        """See to it that each task has k rows, which are its answers.

        Raises:
            ValueError: one has fewer.
        """
        self._tasks(rows)

    def _tasks(self, rows: Sequence[ScoredRow]) -> list[list[int]]:
        """Numbers of the rows of each task."""
        tasks: dict[object, list[int]] = {}
        for i, row in enumerate(rows):
            tasks.setdefault(_task_of(row), []).append(i)
        few = next((members for members in tasks.values() if len(members) < self.k), None)
        if few is not None:
            raise ValueError(
                f"{rows[few[0]].row}: expected {self.k} or more answers to the task for {self.name}, got {len(few)}"
            )
        return list(tasks.values())

    def prepare(self, rows: Sequence[ScoredRow]) -> None:
        """Run all answers, as many at once as there are processors.

        Raises:
            ValueError: as `check` and `check_all`.
        """
        answered = [row for row in rows if row.prediction is not None]
        for row in answered:
            self.check(row)
        tasks = self._tasks(answered)
        passed = run_all([[program_of(row, answer_of(row, self.name)), *checks_of(row)] for row in answered])
        self.estimates = dict.fromkeys(row.row for row in answered)
        for members in tasks:
            estimate = pass_at_k(len(members), sum(passed[i] for i in members), self.k)
            self.estimates[answered[members[0]].row] = estimate

    def statistics(self, row: ScoredRow) -> Sequence[float]:
        """The estimate of the task and a one with its first row, zeros with the others.

        Raises:
            ValueError: `prepare` did not see the row.
        """
        if row.row not in self.estimates:
            raise ValueError(f"{row.row}: expected `prepare` to have run the answer for metric {self.name}, got a new row")
        estimate = self.estimates[row.row]
        return (0.0, 0.0) if estimate is None else (estimate, 1.0)


class PassAt5(PassAt1):
    """pass@k for k = 5; at least five answers to each task."""

    name: ClassVar[str] = "pass_at_5"
    k: ClassVar[int] = 5


class PassAt10(PassAt1):
    """pass@k for k = 10; at least ten answers to each task."""

    name: ClassVar[str] = "pass_at_10"
    k: ClassVar[int] = 10


class PassAt100(PassAt1):
    """pass@k for k = 100; at least a hundred answers to each task."""

    name: ClassVar[str] = "pass_at_100"
    k: ClassVar[int] = 100


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n answers, of which c pass, have one that passes.

    As 1 - prod_{i = n - c + 1}^{n} (1 - k / i), whose factors are all within 0 and 1, where binomials overflow.

    Args:
        n: answers, at least k.
        c: those that pass, at most n.
        k: how many are drawn, at least 1.
    """
    if n - c < k:
        return 1.0
    missed = 1.0
    for i in range(n - c + 1, n + 1):
        missed *= 1 - k / i
    return 1 - missed


def checks_of(row: ScoredRow) -> list[str]:
    """The code that tests a row's answer, to be run after it.

    Raises:
        ValueError: there is none, or a column holds something else.
    """
    meta = row.example.meta
    entry = meta.get("entry_point")
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        raise ValueError(f"{row.row}: expected 'entry_point' to be the name of a function, got {entry!r:.80}")
    test, setup = meta.get("test"), meta.get("test_setup_code") or ""
    if test is not None:
        defined = _defined(row, "test", test)
        if "check" in defined and not entry:
            raise ValueError(
                f"{row.row}: expected a column 'entry_point', as 'test' defines check() and does not call it, got none"
            )
        return [test, f"check({entry})"] if "check" in defined else [test]
    column = next((name for name in _LISTS if meta.get(name) is not None), None)
    if column is None:
        raise ValueError(f"{row.row}: expected a column 'test' or 'tests' with the tests of the answer, got none")
    tests = meta[column]
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"{row.row}: expected '{column}' to be a list of statements, got {json_name(tests)}")
    for one in tests:
        _defined(row, column, one)
    if setup:
        _defined(row, "test_setup_code", setup)
    return [setup, *tests]


def _defined(row: ScoredRow, column: str, code: object) -> set[str]:
    """The names that Python code of a column defines.

    Raises:
        ValueError: it is no code, so that no answer could pass.
    """
    tree = python_tree(code) if isinstance(code, str) else None
    if tree is None or not tree.body:
        got = f"{code!r:.60}" if isinstance(code, str) else json_name(code)
        raise ValueError(f"{row.row}: expected '{column}' to hold Python code, got {got}")
    return names_of(tree)


def _at_once() -> int:
    """Programs that run beside each other: more than there are cores for would take each other's seconds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, quota() or cores)


def run_all(programs: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each program ran to its end; equal ones are run once.

    Raises:
        SandboxError: the sandbox of one of them did not begin.
    """
    from lightning_ft.generation import tracked

    different = list(dict.fromkeys(tuple(program) for program in programs))
    with ThreadPoolExecutor(_at_once()) as pool:
        waiting = [pool.submit(_passes, program) for program in different]
        try:
            shown = len(different) >= _LONG
            found = [one.result() for one in tracked(waiting, "running tests", shown=shown, unit="programs")]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    passed = dict(zip(different, found, strict=True))
    return [passed[tuple(program)] for program in programs]


@lru_cache(maxsize=4096)
def _passes(program: tuple[str, ...]) -> bool:
    """Whether a program ran to its end; remembered for the other k."""
    return sandbox.run(program).passed


def _task_of(row: ScoredRow) -> object:
    """What the answers to one task have in common."""
    named = row.example.meta.get("task_id")
    if named is not None:
        return ("task_id", str(named))
    return ("prompt", row.prompt) if row.prompt is not None else ("row", row.row)
