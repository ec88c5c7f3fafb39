"""The media store: bytes by their hash, whole or not at all."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from shared.errors import InvalidMessage, Unavailable
from shared.media import MediaStore
from shared.settings import MediaSettings


def make(folder: Path, max_bytes: int = 1000) -> MediaStore:
    return MediaStore(MediaSettings(url=folder.as_uri(), max_bytes=max_bytes))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_put_can_be_got_by_its_hash(tmp_path: Path) -> None:
    store = make(tmp_path)
    sha256 = store.put(b"pixels")
    assert sha256 == hashlib.sha256(b"pixels").hexdigest()
    assert store.get(sha256) == b"pixels"
    assert make(tmp_path).get(sha256) == b"pixels"


def test_the_same_bytes_are_one_file(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.put(b"pixels") == store.put(b"pixels")
    store.put(b"others")
    assert len(files(tmp_path)) == 2


def test_nothing_is_stored_or_read_over_the_limit(tmp_path: Path) -> None:
    sha256 = make(tmp_path).put(bytes(500))
    small = make(tmp_path, max_bytes=499)
    with pytest.raises(InvalidMessage, match="500 bytes; the limit is 499"):
        small.put(bytes(500))
    with pytest.raises(InvalidMessage, match="over 499 bytes"):
        small.get(sha256)


@pytest.mark.parametrize("name", ["", "abc", "../../etc/passwd", "A" * 64, "a" * 63 + "\n", "a" * 65])
def test_what_is_no_hash_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidMessage, match="not a SHA-256"):
        make(tmp_path).get(name)


def test_what_was_never_stored_is_the_datas_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="not in the store"):
        make(tmp_path).get("a" * 64)


def test_a_store_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        make(tmp_path / "file").put(b"pixels")
    assert len(files(tmp_path)) == 1


def test_many_writers_of_the_same_bytes_leave_one_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    stores = [make(tmp_path, max_bytes=2_000_000) for _ in range(8)]
    errors: list[BaseException] = []
    start = threading.Barrier(len(stores))

    def put(store: MediaStore) -> None:
        start.wait()
        try:
            store.put(content)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.read_bytes() == content for path in files(tmp_path)] == [True]


def test_a_store_need_not_be_a_folder() -> None:
    store = MediaStore(MediaSettings(url="memory://media"))
    assert store.get(store.put(b"pixels")) == b"pixels"


def test_a_store_that_is_away_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    store = MediaStore(MediaSettings(url=tmp_path.as_uri()))
    sha256 = store.put(b"pixels")
    folder = tmp_path / sha256[:2]
    folder.rename(tmp_path / "aside")
    folder.write_text("a file in its place: every access fails")
    with pytest.raises(OSError, match="Not a directory"):
        store.get(sha256)
    with pytest.raises(Unavailable, match="media store stayed away for 0 s"):
        store.get_with_retries(sha256, 0.2)

    def back() -> None:
        folder.unlink()
        (tmp_path / "aside").rename(folder)

    timer = threading.Timer(0.5, back)
    timer.start()
    assert store.get_with_retries(sha256, 30) == b"pixels"
    timer.join()
    with pytest.raises(InvalidMessage, match="not in the store"):
        store.get_with_retries("a" * 64, 30)
