import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_ft.data.split import GROUP_COLUMNS, SPLITS, Split, content_hash, prompt_key, split_name, split_rows
from lightning_ft.errors import DataError, UsageError
from lightning_ft.types import Classified, Conversation, Example, Message, Preference, Text, Unpaired

SHARES = [0.8, 0.1, 0.1]


def rows_of(n: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i}?", "answer": str(i)} for i in range(n)]


def parted(rows: list[dict[str, Any]], *args: Any, **options: Any) -> list[Split]:
    """Of rows that ask what is in the column `question` or `text`."""
    return split_rows(rows, [[content_hash(str(row.get("question", row.get("text"))))] for row in rows], *args, **options)


ROW = st.fixed_dictionaries(
    {"question": st.integers(0, 30).map(str), "answer": st.integers(0, 3).map(str)},
    optional={"group": st.integers(0, 8), "conversation_id": st.sampled_from(["a", "b", None])},
)


@given(st.lists(ROW, max_size=40), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.9, 0.0, 0.1)]), st.integers(0, 5))
def test_every_row_has_one_split_and_no_group_or_prompt_is_torn(
    rows: list[dict[str, Any]], shares: tuple[float, ...], seed: int
) -> None:
    splits = parted(rows, shares, seed)
    assert len(splits) == len(rows)
    allowed = {name for name, share in zip(SPLITS, shares, strict=False) if share > 0}
    assert set(splits) <= allowed
    for column in ("question", *GROUP_COLUMNS):
        seen: dict[Any, set[str]] = {}
        for row, split in zip(rows, splits, strict=True):
            if row.get(column) is not None:
                seen.setdefault(row[column], set()).add(split)
        assert all(len(found) == 1 for found in seen.values())


@given(st.permutations(list(range(25))), st.integers(0, 3))
def test_the_order_of_the_rows_does_not_matter(order: list[int], seed: int) -> None:
    rows = rows_of(25)
    for i, row in enumerate(rows):
        row["group"] = i // 2 if i < 12 else None
    straight = parted(rows, SHARES, seed)
    assert parted([rows[i] for i in order], SHARES, seed) == [straight[i] for i in order]


@given(st.integers(3, 60), st.integers(0, 9))
def test_every_share_gets_a_row_and_the_shares_are_kept(n: int, seed: int) -> None:
    found = Counter(parted(rows_of(n), SHARES, seed))
    assert set(found) == set(SPLITS)
    for name, share in zip(SPLITS, SHARES, strict=True):
        assert abs(found[name] - share * n) <= 2


def test_the_seed_decides() -> None:
    splits = [tuple(parted(rows_of(50), SHARES, seed)) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_other_processes_and_hash_seeds_give_the_same_split() -> None:
    code = (
        "from lightning_ft.data.split import split_rows;"
        "print(split_rows([{'group': i % 7} for i in range(40)], [[i] for i in range(40)], [.6, .2, .2], 3))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {f"{split_rows([{'group': i % 7} for i in range(40)], [[i] for i in range(40)], [0.6, 0.2, 0.2], 3)}\n"}


def test_fewer_than_three_rows_go_to_train_first() -> None:
    assert parted([], SHARES, 0) == []
    assert parted(rows_of(1), SHARES, 0) == ["train"]
    assert sorted(parted(rows_of(2), SHARES, 0)) == ["train", "validation"]


def test_a_large_group_trains() -> None:
    rows = [{"text": str(i), "document_id": "long" if i < 60 else str(i)} for i in range(100)]
    for seed in range(5):
        splits = parted(rows, SHARES, seed)
        assert set(splits[:60]) == {"train"}
        assert Counter(splits) == {"train": 80, "validation": 10, "test": 10}


def talk(*turns: str) -> tuple[Message, ...]:
    """Of texts, the user first; `s:` before a system text."""
    system = [Message("system", turns[0][2:])] if turns[0].startswith("s:") else []
    rest = turns[len(system) :]
    return (*system, *(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(rest)))


def test_what_is_asked_is_known_again() -> None:
    """In whatever form it is asked, and whatever is answered."""
    same: list[Example] = [
        Conversation(talk("How?", "So.")), Conversation(talk("How?", "No."), meta={"lang": "en"}), Conversation(talk("How?")),
        Preference(talk("How?"), talk("So."), talk("Not so.")), Unpaired(talk("How?"), talk("So."), True),
    ]  # fmt: skip
    assert len({prompt_key(example) for example in same}) == 1
    assert prompt_key(Classified("How?", "greeting")) == prompt_key(Classified("How?", "question"))
    others: list[Example] = [
        Conversation(talk("Who?", "So.")), Conversation(talk("s:Be brief.", "How?", "So.")),
        Conversation(talk("How?", "So.", "And then?", "So.")), Conversation((Message("user", "", extra={"image": 1}),)),
        Text("How?"), Text("How? So."),
    ]  # fmt: skip
    assert len({prompt_key(example) for example in (same[0], *others)}) == 1 + len(others)


def test_where_nothing_is_asked_all_that_is_said_counts() -> None:
    """A system text is no question: rows that share one alone are not one group."""
    said = [Conversation((Message("system", "You dream."), Message("assistant", text))) for text in ("of", "electric", "sheep")]
    said.append(Conversation((Message("assistant", "of"),)))
    assert len({prompt_key(example) for example in said}) == 4
    system, answers = (Message("system", "You dream."),), [(Message("assistant", str(n)),) for n in range(4)]
    pairs = [Preference(system, answers[n], answers[n + 1]) for n in range(3)]
    assert len({prompt_key(pair) for pair in pairs}) == 3
    assert len({prompt_key(Unpaired(system, answers[n], True)) for n in range(3)}) == 3


def test_rows_of_several_prompts_stay_with_each_row_that_shares_one() -> None:
    prompts = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(40)] + [[3 * i + i % 3] for i in range(40)]
    splits = split_rows([{}] * 80, prompts, SHARES, 0)
    assert splits[:40] == splits[40:]
    assert set(splits) == set(SPLITS)


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), ("Training", "train"), ("val", "validation"), ("valid", "validation"), (" dev ", "validation"),
     ("validation", "validation"), ("TEST", "test"), ("eval", "test"), ("holdout", None), (3, None), (None, None)],
)  # fmt: skip
def test_spellings(word: Any, split: str | None) -> None:
    assert split_name(word) == split


def test_an_explicit_split_wins() -> None:
    rows = [{"text": str(i), "split": ("training", "dev", "eval")[i % 3]} for i in range(9)]
    assert parted(rows, SHARES, 0) == ["train", "validation", "test"] * 3
    assert parted([{"text": "a", "split": "test"}] * 5, SHARES, 0) == ["test"] * 5


def test_a_split_that_is_never_named_is_split_off_train() -> None:
    rows = [{"text": str(i), "split": "test" if i < 20 else "train"} for i in range(110)]
    splits = parted(rows, SHARES, 0)
    assert splits[:20] == ["test"] * 20
    assert Counter(splits[20:]) == {"train": 80, "validation": 10}
    assert set(parted(rows, [0.9, 0.0, 0.1], 0)[20:]) == {"train"}


def test_a_missing_or_unknown_explicit_split_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        parted([{"split": "train"}, {"split": None}], SHARES, 0, ids=["a.jsonl:1", "a.jsonl:2"])
    assert str(caught.value) == (
        "a.jsonl:2: expected 'split' to be one of train, training, val, valid, validation, dev, test, eval, got nothing, while"
        " other rows have one; fill it in every row, or rename the column to have the rows split by --split."
    )
    with pytest.raises(DataError, match=r"^row 1: expected 'split' .* got 'fold3'; "):
        parted([{"split": "fold3"}], SHARES, 0)


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.2, 0.2, 0.1], [1.2, -0.2], [0.0, 0.0]])
def test_impossible_shares(shares: list[float]) -> None:
    with pytest.raises(UsageError, match="Expected --split to be 2 or 3 shares"):
        parted(rows_of(3), shares, 0)


def test_rows_that_are_alike_and_own_groups_stay_together() -> None:
    rows = [{"question": f"q{i}", "who": i % 7} for i in range(70)]
    pairs = [(i, i + 35) for i in range(35)]
    splits = parted(rows, [0.7, 0.2, 0.1], 0, alike=pairs)
    assert all(splits[i] == splits[j] for i, j in pairs)
    assert splits == parted(rows, [0.7, 0.2, 0.1], 0, alike=[(j, i) for i, j in reversed(pairs)])
    by_person = parted(rows, [0.5, 0.5], 0, groups=("who",))
    assert len({(row["who"], split) for row, split in zip(rows, by_person, strict=True)}) == 7


def test_every_stratum_is_shared_out() -> None:
    rows = [{"question": f"q{i}"} for i in range(300)]
    strata = ["many" if i % 10 else "few" for i in range(300)]
    splits = parted(rows, [0.8, 0.1, 0.1], 3, strata=strata)
    for kind in ("many", "few"):
        counts = Counter(split for split, own in zip(splits, strata, strict=True) if own == kind)
        total = counts.total()
        assert [round(10 * counts[name] / total) for name in ("train", "validation", "test")] == [8, 1, 1]
