"""An answer made of pieces is the answer made at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.crowdtone.v1 import api_pb2 as api
from services.api.queries import BOARD_POINTS, Row, add_points, serialized

COUNT = st.integers(0, 2**40)
POINT = st.tuples(
    st.integers(-(2**36), 2**36), COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(-(2**50), 2**50)
)


@given(st.lists(POINT, max_size=5), st.integers(1, 3))
def test_the_bytes_are_those_of_the_message(points: list[Row], times: int) -> None:
    expected = api.QueryTrendsResponse()
    add_points(expected, points * times)
    assert serialized(points * times) == expected.SerializeToString()


@pytest.mark.parametrize("count", [0, BOARD_POINTS, BOARD_POINTS + 1])
def test_short_and_long_answers_have_all_their_points(count: int) -> None:
    points: list[Row] = [(60 * number, number, 0, number, 0, 0, 0) for number in range(count)]
    answer = api.QueryTrendsResponse.FromString(serialized(points))
    assert [(point.bucket_start.seconds, point.posts) for point in answer.points] == [p[:2] for p in points]
