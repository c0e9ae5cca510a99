import json

import pytest

from lightning_ft.data.ledger import DUPLICATE, EMPTY, NO_SUPERVISED, Ledger
from lightning_ft.errors import CheckFailedError, DataError, TrainingError


def filled() -> Ledger:
    """108 rows: 100 whole, 4 cut (losing 6 + 16 + 26 + 36 tokens), 1 emptied (436), 1 duplicate, 2 unreadable."""
    ledger = Ledger(max_length=64)
    ledger.add_read("a.jsonl", 107)
    for i in range(100):
        split = "train" if i < 80 else ("validation" if i < 90 else "test")
        ledger.add_used("a.jsonl", split, tokens=50, supervised=20, roles={"user": (30, 0), "assistant": (20, 20)})  # type: ignore[arg-type]  # three literals
    for length in (70, 80, 90, 100):
        ledger.add_cut("a.jsonl", length=length, lost=length - 64, supervised_lost=length - 64)
        ledger.add_used("a.jsonl", "train", tokens=64, supervised=10)
    ledger.add_dropped("a.jsonl", DUPLICATE)
    ledger.add_failed("a.jsonl", 2)
    ledger.add_read("b.csv")
    ledger.add_cut("b.csv", length=500, lost=436, supervised_lost=3)
    ledger.add_dropped("b.csv", NO_SUPERVISED)
    return ledger


def test_the_account_closes() -> None:
    ledger = filled()
    ledger.closes()
    ledger.add_read("b.csv")
    with pytest.raises(TrainingError) as caught:
        ledger.closes()
    assert str(caught.value) == (
        "b.csv: expected every row to be accounted for, got 2 read + 0 unfolded but 0 train + 0 validation + 0 test +"
        " 1 dropped + 0 failed; this is a bug, please report it with the ledger."
    )


def test_too_many_lost_rows_stop_the_run_with_the_length_that_fits() -> None:
    ledger = filled()
    ledger.check(0.05)
    with pytest.raises(CheckFailedError) as caught:
        ledger.check(0.02)
    assert str(caught.value) == (
        "Expected --max_length 64 to cut at most 2 % of the rows (--max_lost 0.02), got 4.72 % (5 rows, 520 tokens, 87 of them"
        " supervised); type --max_length 100 to fit 99 % of the rows, or --max_lost 0.048 to accept it."
    )
    assert caught.value.exit_code == 3
    ledger.check(0.048)


def test_the_advised_length_fits_the_share() -> None:
    ledger = filled()
    lengths = [50] * 100 + [70, 80, 90, 100, 500] + [0]  # the duplicate was never measured
    for share in (0.96, 0.97, 0.98, 0.99, 1.0):
        advised = ledger.fitting_length(share)
        assert sum(length <= advised for length in lengths) >= share * len(lengths)
        assert sum(length <= advised - 1 for length in lengths) < share * len(lengths)
    assert Ledger().fitting_length() == 0


def test_no_length_is_advised_that_the_model_has_not() -> None:
    ledger = Ledger(max_length=100)
    ledger.add_read("a", 10)
    for _ in range(10):
        ledger.add_used("a", "train", tokens=100, supervised=50)
        ledger.add_cut("a", length=3000, lost=2900)
    with pytest.raises(CheckFailedError, match=r"type --max_length 3000 to fit 99 % of the rows"):
        ledger.check(0.05, positions=3000)
    with pytest.raises(CheckFailedError, match=r"99 % of the rows need 3000 tokens and the model has places for 2048: shorten"):
        ledger.check(0.05, positions=2048)


def test_nothing_left_to_supervise_is_wrong_input() -> None:
    ledger = Ledger(max_length=8)
    ledger.add_read("a.jsonl", 3)
    ledger.add_dropped("a.jsonl", EMPTY, 3)
    with pytest.raises(DataError) as caught:
        ledger.check(0.05)
    assert str(caught.value) == (
        "a.jsonl: expected at least one row with a supervised token, got none of 3 rows (3 empty); check the"
        " columns and --task."
    )
    ledger.add_read("a.jsonl")
    ledger.add_cut("a.jsonl", length=90, lost=82)
    ledger.add_dropped("a.jsonl", NO_SUPERVISED)
    with pytest.raises(
        DataError, match=r"none of 4 rows \(3 empty, 1 no supervised token left\); type --max_length 90 to fit 99 %"
    ):
        ledger.check(1.0)


def test_it_travels_through_json() -> None:
    ledger = filled()
    again = Ledger.from_dict(json.loads(json.dumps(ledger.as_dict())))
    assert again == ledger
    assert again.fitting_length() == ledger.fitting_length() == 100
    assert ledger.as_dict()["total"]["dropped"] == {DUPLICATE: 1, NO_SUPERVISED: 1}


def test_a_ledger_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a ledger of version 1, got 7"):
        Ledger.from_dict({"version": 7})


def test_table_and_summary() -> None:
    ledger = filled()
    assert ledger.table() == [
        ("source", "read", "train", "validation", "test", "truncated", "dropped", "failed", "tokens", "supervised"),
        ("a.jsonl", "107", "84", "10", "10", "4", "1", "2", "5,256", "2,040"),
        ("b.csv", "1", "0", "0", "0", "1", "1", "0", "0", "0"),
        ("total", "108", "84", "10", "10", "5", "2", "2", "5,256", "2,040"),
    ]
    assert ledger.summary() == (
        "108 rows read: 84 train, 10 validation, 10 test, 2 dropped (1 duplicate, 1 no supervised token left), 2 failed;"
        " 5 truncated (520 tokens lost, 87 of them supervised); 5,256 tokens, 2,040 supervised (38.8 %);"
        " supervised by role: assistant 2,000/2,000, user 0/3,000."
    )
