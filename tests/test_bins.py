"""Best fit: nothing lost, nothing over, and less room left than in order."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_ft.data.bins import best_fit


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 60))
def test_every_row_is_in_one_box_and_no_two_are_too_many(lengths: list[int], room: int) -> None:
    boxes = best_fit(lengths, room)
    assert sorted(row for box in boxes for row in box) == list(range(len(lengths)))
    for box in boxes:
        assert box == sorted(box)
        assert sum(lengths[row] for row in box) <= room or len(box) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 60))
def test_no_two_boxes_would_fit_in_one(lengths: list[int], room: int) -> None:
    loads = sorted(sum(lengths[row] for row in box) for box in best_fit(lengths, room))
    assert len(loads) == 1 or loads[0] + loads[1] > room


def test_the_fullest_box_with_room_is_taken() -> None:
    # 5 and 6 do not share a box of 10; 4 goes to 6, where it leaves nothing, and 3 to 5.
    assert best_fit([5, 6, 4, 3], 10) == [[0, 3], [1, 2]]
