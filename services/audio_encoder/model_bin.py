"""CTranslate2's `model.bin`, read without CTranslate2: the same file serves both backends.

Pure: a file in, arrays out. Believes no length it is told: what does not fit is a ValueError, and no memory
is taken for it. No pickles.
Source: the format as CTranslate2 4 writes it, python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

VERSION: Final = 6  # of the container; the models' own revisions are counted beside it

_DTYPES: Final = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # bfloat16 would be 5


def read(path: Path) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """The specification's name, as "WhisperSpec", and its variables by name, aliases included.

    The arrays are views of the mapped file: copy what is to outlive a change of it.
    Raises ValueError for a file that is none, is cut off, or has anything behind its end.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("model.bin is empty")
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = _Reader(content)
    if (version := reader.number("<I")) != VERSION:
        raise ValueError(f"model.bin is of version {version}, not {VERSION}")
    spec = reader.name()
    reader.number("<I")  # the revision of the specification
    variables: dict[str, npt.NDArray[Any]] = {}
    for _ in range(reader.number("<I")):
        name = reader.name()
        shape = tuple(reader.number("<I") for _ in range(reader.number("<B")))
        dtype = _DTYPES.get(kind := reader.number("<B"))
        if dtype is None:
            raise ValueError(f"model.bin: {name} is of the unknown type {kind}")
        array = np.frombuffer(reader.taken(reader.number("<I")), np.uint8)
        length = int(np.dtype(dtype).itemsize) * _product(shape)
        if length != array.size:
            raise ValueError(f"model.bin: {name} has {array.size} bytes, and its shape {length}")
        variables[name] = array.view(dtype).reshape(shape)
    for _ in range(reader.number("<I")):
        alias, name = reader.name(), reader.name()
        if name not in variables:
            raise ValueError(f"model.bin: {alias} stands for {name}, which is not there")
        variables[alias] = variables[name]
    if reader.left:
        raise ValueError(f"model.bin goes on for {reader.left} bytes behind its end")
    return spec, variables


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length  # of Python's integers, which do not overflow
    return product


class _Reader:
    """Goes through the bytes once, front to back."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def taken(self, length: int) -> memoryview:
        if length > self.left:
            raise ValueError(f"model.bin breaks off: {length} bytes wanted at {self._at}, {self.left} there")
        self._at += length
        return self._content[self._at - length : self._at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.taken(struct.calcsize(form)))
        return int(value)

    def name(self) -> str:
        raw = bytes(self.taken(self.number("<H")))
        if not raw.endswith(b"\0"):
            raise ValueError("model.bin: a name does not end where it should")
        try:
            return raw[:-1].decode("ascii")
        except UnicodeDecodeError as error:
            raise ValueError("model.bin: a name is no ASCII") from error
