"""The reader of ONNX's tensors: what is there, and what breaks off."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from services.audio_encoder.silero import initialisers


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def model() -> bytes:
    numbers = np.arange(6, dtype="<f4")
    tensor = b"\x08\x02\x08\x03" + b"\x10\x01" + field(8, b"weight") + field(9, numbers.tobytes())
    packed = field(1, b"\x02\x03") + b"\x10\x01" + field(8, b"packed") + field(9, numbers.tobytes())
    lengths = b"\x08\x01\x10\x07" + field(8, b"int64") + field(9, struct.pack("<q", 1))
    node = field(1, field(4, b"Conv"))
    return b"\x08\x08" + field(7, node + field(5, tensor) + field(5, packed) + field(5, lengths))


def test_the_float_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model())
    found = initialisers(path)
    assert found.keys() == {"weight", "packed"}
    for array in found.values():
        np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])


def test_a_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for length in range(3, len(model())):
        path.write_bytes(model()[:length])
        with pytest.raises(ValueError, match="ONNX"):
            initialisers(path)
