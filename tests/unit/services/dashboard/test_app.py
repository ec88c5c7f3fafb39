"""What the server decides by itself."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from services.dashboard.app import byte_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-", (0, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=90-999", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-999", (0, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=7-3", (7, 4)),
        ("bytes=-0", (100, 100)),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
    ],
)
def test_byte_ranges(header: str, expected: tuple[int, int] | None) -> None:
    assert byte_range(Headers({"range": header} if header else {}), 100) == expected
