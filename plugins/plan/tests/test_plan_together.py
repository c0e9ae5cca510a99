"""Jobs are divided between the process and its copy, and all of them are done whatever becomes of the copy."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest
from lightning_ft_plan import together as module
from lightning_ft_plan.together import together

HERE = os.getpid()


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)


def slowly(number: int) -> tuple[int, int]:
    time.sleep(0.05)
    return number, os.getpid()


def test_both_take_a_part_and_the_order_stays() -> None:
    seen: list[int] = []
    found = together([partial(slowly, n) for n in range(8)], seen.append)
    assert [number for number, _ in found] == list(range(8))
    assert len({process for _, process in found}) == 2
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("end", ["raise", "die"])
def test_what_fails_in_the_copy_is_done_here(end: str) -> None:
    def job(number: int) -> tuple[int, int]:
        if os.getpid() != HERE:
            if end == "die":
                os._exit(1)
            raise OSError("only there")
        return slowly(number)

    assert together([partial(job, n) for n in range(6)], lambda n: None) == [(n, HERE) for n in range(6)]


def test_what_fails_here_is_raised() -> None:
    def job() -> int:
        if os.getpid() == HERE:
            raise KeyError("here")
        time.sleep(0.2)  # or the copy might take all of them
        return 1

    with pytest.raises(KeyError, match="here"):
        together([job] * 4, lambda n: None)


def test_one_core_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(module, "_Copy", None)
    assert together([os.getpid] * 3, lambda n: None) == [HERE] * 3
