"""From files below one folder to media in the store, and nothing from anywhere else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from services.ingest.attachments import Attachments
from services.ingest.draft import Attachment
from shared.errors import InvalidMessage, Unavailable
from shared.media import MediaStore
from shared.messages import Media, Modality
from shared.settings import MediaSettings

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG + b"secret")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> MediaStore:
    return MediaStore(MediaSettings(url=(tmp_path / "store").as_uri()))


def attachments(folder: Path | None, store: MediaStore, max_bytes: int = 1000) -> Attachments:
    return Attachments(folder, store, max_bytes=max_bytes, retry_s=0.3)


def take(folder: Path | None, store: MediaStore, *paths: str) -> tuple[Media, ...]:
    return attachments(folder, store).take([Attachment(path=path) for path in paths])


def test_a_file_is_stored_by_its_content(folder: Path, store: MediaStore) -> None:
    (media,) = take(folder, store, "in/a.png")
    sha256 = hashlib.sha256(PNG).hexdigest()
    assert media == Media(Modality.IMAGE, sha256, "image/png", len(PNG))
    assert store.get(sha256) == PNG


@pytest.mark.parametrize("name", ["in/none.png", "in.png", "a" * 300 + ".png", "nul\0.png", "in/a.png/x.png"])
def test_a_missing_file_is_declared_without_content(folder: Path, store: MediaStore, name: str) -> None:
    assert take(folder, store, name) == (Media(Modality.IMAGE, "", "image/png"),)


def test_a_folder_a_pipe_and_a_file_too_large_are_declared_without_content(
    folder: Path, store: MediaStore
) -> None:
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "large.png").write_bytes(PNG + bytes(2000))
    reader = attachments(folder, store)
    names = ["folder.png", "pipe.png", "large.png"]
    assert (
        reader.take([Attachment(path=name) for name in names])
        == (Media(Modality.IMAGE, "", "image/png"),) * 3
    )
    assert reader.counts.missing == 3


def test_without_a_folder_nothing_is_read(store: MediaStore) -> None:
    assert take(None, store, "a.png") == (Media(Modality.IMAGE, "", "image/png"),)


@pytest.mark.parametrize("target", ["../secret.png", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, store: MediaStore, target: str) -> None:
    (folder / "link.png").symlink_to(target)
    (folder / "links").symlink_to(folder.parent)
    for path in ("link.png", "links/secret.png", "../secret.png"):
        with pytest.raises(InvalidMessage, match="leads out"):
            take(folder, store, path)


def test_a_link_within_the_folder_is_followed(folder: Path, store: MediaStore) -> None:
    (folder / "link.png").symlink_to("in/a.png")
    assert take(folder, store, "link.png") == take(folder, store, "in/a.png")


def test_an_empty_file_is_stored_for_its_encoder_to_judge(folder: Path, store: MediaStore) -> None:
    (folder / "empty.jpg").touch()
    (media,) = take(folder, store, "empty.jpg")
    assert media.sha256
    assert media.size_bytes == 0
    assert store.get(media.sha256) == b""


def test_what_is_neither_picture_nor_sound_is_left_out_and_counted(folder: Path, store: MediaStore) -> None:
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7")
    reader = attachments(folder, store)
    assert len(reader.take([Attachment(path="paper.pdf"), Attachment(path="in/a.png")])) == 1
    assert (reader.counts.stored, reader.counts.missing, reader.counts.ignored) == (1, 0, 1)


def test_media_elsewhere_is_declared_not_fetched(store: MediaStore) -> None:
    elsewhere = Attachment(source_url="https://example.org/x", mime_type="video/mp4", size_bytes=9)
    assert attachments(None, store).take([elsewhere]) == (
        Media(Modality.AUDIO, "", "video/mp4", 9, "https://example.org/x"),
    )


def test_a_store_that_takes_nothing_stops_ingest(folder: Path, store: MediaStore, tmp_path: Path) -> None:
    """A file stands where the store's folder would be: for root too, nothing can be written."""
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(Unavailable, match="media store"):
        take(folder, store, "in/a.png")
