"""A file of weights comes out as it went in, and a damaged one as a reason, never as other numbers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.audio_encoder import model_bin

VARIABLES = {
    "encoder/num_heads": np.int16(8),
    "decoder/embeddings/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "decoder/bias": np.linspace(0, 1, 5, dtype=np.float32),
}
CODES = {np.dtype(np.float32): 0, np.dtype(np.int16): 2, np.dtype(np.float16): 4}


def name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(own: str, array: npt.NDArray[Any]) -> bytes:
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return name(own) + shape + struct.pack("<BI", CODES[array.dtype], array.nbytes) + array.tobytes()


def written(spec: str = "WhisperSpec", alias_of: str = "decoder/embeddings/weight") -> bytes:
    variables = b"".join(variable(own, np.asarray(array)) for own, array in VARIABLES.items())
    head = struct.pack("<I", 6) + name(spec) + struct.pack("<II", 3, len(VARIABLES))
    return head + variables + struct.pack("<I", 1) + name("decoder/projection/weight") + name(alias_of)


def read(tmp_path: Path, content: bytes) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return model_bin.read(path)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    spec, variables = read(tmp_path, written())
    assert spec == "WhisperSpec"
    assert variables.keys() == {*VARIABLES, "decoder/projection/weight"}
    for own, array in VARIABLES.items():
        np.testing.assert_array_equal(variables[own], array)
    assert variables["decoder/projection/weight"] is variables["decoder/embeddings/weight"]


def test_wherever_it_breaks_off_is_told(tmp_path: Path) -> None:
    whole = written()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"model\.bin"):
            read(tmp_path, whole[:length])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (written() + b"\0", "behind its end"),
        (b"\x05" + written()[1:], "version 5"),
        (written(alias_of="decoder/else"), "which is not there"),
        (written().replace(b"\x04\x0c\x00\x00\x00", b"\x05\x0c\x00\x00\x00"), "unknown type 5"),
        (written().replace(b"\x02\x02\x00\x00\x00\x03", b"\x02\x02\x00\x00\x00\x04"), "its shape 16"),
        # 2^32 - 1 of 2^32 - 1 numbers: no memory is asked for.
        (written().replace(struct.pack("<BII", 2, 2, 3), struct.pack("<BII", 2, *[2**32 - 1] * 2)), "shape"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(at=st.integers(0, len(written()) - 1), byte=st.integers(0, 255))
def test_a_byte_that_is_another_is_told_or_read(tmp_path: Path, at: int, byte: int) -> None:
    damaged = bytearray(written())
    damaged[at] = byte
    try:
        _, variables = read(tmp_path, bytes(damaged))
    except ValueError:
        return
    assert sum(array.nbytes for array in variables.values()) < 2 * len(damaged)
