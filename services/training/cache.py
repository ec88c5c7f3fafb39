"""Embeddings on disk by content hash, so that a second training on the same data costs seconds. Knows no
model.

One folder per encoder version, append-only .npz files in it (arrays only, never a pickle). Each file arrives
by one rename: two trainings can share the folder, and one that is killed loses the last few seconds of work.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from shared.messages import Answer, Modality, Vector

_KEY_BYTES = 32


def content_key(*contents: bytes) -> bytes:
    """32 bytes that name what an encoder is given: the SHA-256 of the parts, or of their hashes when there
    are more."""
    digests = [hashlib.sha256(content).digest() for content in contents]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


class EmbeddingCache:
    """What one encoder version answered, by content key."""

    def __init__(self, cache_dir: Path, model_version: str, slots: Sequence[Modality]) -> None:
        """Reads everything stored for this version; files that are not whole are passed over and written
        again."""
        self._slots = tuple(slots)
        safe = re.sub(r"[^A-Za-z0-9@+._-]", "_", model_version)
        self._folder = cache_dir.expanduser() / "embeddings" / safe
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vectors: dict[bytes, Mapping[Modality, Vector | None]] = {}
        for path in sorted(self._folder.glob("*.npz")):
            self._read(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> Mapping[Modality, Vector | None]:
        """The vector of each slot, None where the encoder had no answer. Raises KeyError when it was never
        asked."""
        return self._vectors[key]

    def put(self, keys: Sequence[bytes], answers: Sequence[Mapping[Modality, Answer]]) -> None:
        """Store the answers of one batch as one file."""
        if not keys:
            return
        arrays = {"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)}
        for slot in self._slots:
            found = [(i, answer[slot].vector) for i, answer in enumerate(answers)]
            present = [(i, vector) for i, vector in found if vector is not None]
            name = slot.name.lower()
            arrays[f"{name}_rows"] = np.array([i for i, _ in present], np.int32)
            arrays[name] = np.array([vector for _, vector in present], np.float16)
        target = self._folder / f"{hashlib.sha256(arrays['keys'].tobytes()).hexdigest()[:32]}.npz"
        handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise
        for key, answer in zip(keys, answers, strict=True):
            self._vectors[key] = {slot: answer[slot].vector for slot in self._slots}

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                keys = [row.tobytes() for row in file["keys"]]
                columns: dict[Modality, list[Vector | None]] = {}
                for slot in self._slots:
                    column: list[Vector | None] = [None] * len(keys)
                    for row, vector in zip(
                        file[f"{slot.name.lower()}_rows"], file[slot.name.lower()], strict=True
                    ):
                        column[row] = vector
                    columns[slot] = column
        except (OSError, KeyError, ValueError, BadZipFile):  # cut short by a crash, or of another layout
            return
        for i, key in enumerate(keys):
            self._vectors[key] = {slot: columns[slot][i] for slot in self._slots}
