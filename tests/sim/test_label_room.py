"""Names beside points: none over another, in order of preference, left out where there is no room."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from stepline.sim.report.label_room import (
    BESIDE_PX,
    LETTER_PX,
    LIMIT_PX,
    LINE_PX,
    OFFSETS_PX,
    offsets,
    shares,
)

SIZE = (420.0, 300.0)
POINTS = st.lists(
    st.tuples(st.text("ab=,1", min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1)), max_size=30
)


def boxes(points, found):
    """Left, right and height of the names that are written."""
    for (name, x, y), dy in zip(points, found, strict=True):
        if dy is not None:
            wide = min(LIMIT_PX, LETTER_PX * len(name))
            left = x * SIZE[0] + (-BESIDE_PX - wide if x > 0.5 else BESIDE_PX)
            yield left, left + wide, (1 - y) * SIZE[1] + dy


@given(POINTS)
def test_no_name_is_written_over_another(points):
    found = offsets([p[0] for p in points], [p[1] for p in points], [p[2] for p in points], *SIZE)
    for (a, b, up), (c, d, other) in combinations(boxes(points, found), 2):
        assert b <= c or d <= a or abs(up - other) >= LINE_PX


def test_twins_are_stacked_and_the_last_of_too_many_is_left_out():
    n = len(OFFSETS_PX) + 1
    found = offsets(["chunked"] * n, [0.2] * n, [0.5] * n, *SIZE)
    assert found == [*OFFSETS_PX, None]


def test_far_points_have_their_names_at_the_first_place():
    assert offsets(["a", "b"], [0.1, 0.9], [0.1, 0.9], *SIZE) == [OFFSETS_PX[0]] * 2


def test_shares_span_the_axis():
    assert shares([1.0, 10.0, 100.0], is_log=True) == [0.0, 0.5, 1.0]
    assert shares([3.0, 3.0]) == [0.5, 0.5]
    assert shares([]) == []
