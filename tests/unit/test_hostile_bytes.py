"""Whatever bytes come in, random or nearly right, each door answers with a value or a reason.

The same targets as `make fuzz`, for a moment and without its instruments.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@st.composite
def altered(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example with pieces overwritten, cut out, doubled or put in."""
    content = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "double", "break off"])):
            case "overwrite":
                new = draw(st.binary(min_size=length, max_size=length))
                content[at : at + length] = new
            case "insert":
                content[at:at] = draw(st.binary(max_size=8))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length * 8]
            case "break off":
                del content[at:]
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_at_every_door(name: str) -> None:
    target, examples = TARGETS[name]
    for example in examples:
        target(example)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(altered(examples) | st.binary(max_size=200))
    def whatever_comes(content: bytes) -> None:
        target(content)

    whatever_comes()
