"""The embedding cache: what is put is found by the next one, damage costs work and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.training.cache import EmbeddingCache, content_key
from shared.messages import Answer, Modality

SLOTS = (Modality.AUDIO, Modality.SPEECH)


def answers(value: float) -> dict[Modality, Answer]:
    return {
        Modality.AUDIO: Answer(np.full(4, value, np.float16)),
        Modality.SPEECH: Answer(None, "no speech heard"),
    }


def test_what_is_put_is_found_by_the_next_one(tmp_path: Path) -> None:
    keys = [content_key(b"a"), content_key(b"b")]
    EmbeddingCache(tmp_path, "m@1", SLOTS).put(keys, [answers(1), answers(2)])
    cache = EmbeddingCache(tmp_path, "m@1", SLOTS)
    assert len(cache) == 2
    found = cache.get(keys[1])
    assert found[Modality.SPEECH] is None
    heard = found[Modality.AUDIO]
    assert heard is not None
    assert heard.tolist() == [2, 2, 2, 2]
    with pytest.raises(KeyError):
        cache.get(content_key(b"c"))


def test_another_version_shares_nothing(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, "m@1", SLOTS).put([content_key(b"a")], [answers(1)])
    assert content_key(b"a") not in EmbeddingCache(tmp_path, "m@2", SLOTS)


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, "m@1", SLOTS).put([content_key(b"a")], [answers(1)])
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    assert len(EmbeddingCache(tmp_path, "m@1", SLOTS)) == 0


def test_nothing_is_pickled(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, "m@1", SLOTS).put([content_key(b"a")], [answers(1)])
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path, allow_pickle=False) as file:
        assert {str(file[name].dtype) for name in file.files} == {"uint8", "int32", "float16"}


def test_keys_tell_parts_apart() -> None:
    assert content_key(b"ab") != content_key(b"a", b"b")
    assert content_key(b"a", b"b") != content_key(b"b", b"a")
