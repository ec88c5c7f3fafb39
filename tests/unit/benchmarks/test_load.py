"""Loads are the same for the same seed, and of the shapes they claim."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import load
from services.audio_encoder import sounds
from services.image_encoder import pictures
from shared.media import MediaStore
from shared.messages import Modality
from shared.settings import MediaSettings


def test_posts_have_the_lengths_and_the_mix_of_life() -> None:
    every = list(load.posts(4_000))
    assert every == list(load.posts(4_000))
    tokens = [len(post.text.split()) + load.FRAME_TOKENS for post in every]
    assert np.mean(tokens) == pytest.approx(load.MEAN_TOKENS, rel=0.03)
    for modality, share in ((Modality.TEXT, 1.0), (Modality.IMAGE, 0.4), (Modality.AUDIO, 0.1)):
        assert np.mean([modality in post.expected for post in every]) == pytest.approx(share, abs=0.03)


def test_reposts_repeat_words_and_media_under_another_id() -> None:
    every = list(load.posts(2_000))
    found = load.reposted(every, 0.6)
    assert found == load.reposted(every, 0.6)
    assert [post.post_id for post in found] == [post.post_id for post in every]
    texts: set[str] = set()
    repeats = 0
    for post in found:
        repeats += post.text in texts
        texts.add(post.text)
    assert repeats / len(found) == pytest.approx(0.6, abs=0.04)


def test_media_are_real_and_each_has_a_hash_of_its_own(tmp_path: Path) -> None:
    store = MediaStore(MediaSettings(url=tmp_path.as_uri()))
    expecting = [post for post in load.posts(400) if {Modality.IMAGE, Modality.AUDIO} <= post.expected]
    every = load.with_media(expecting, store, [Modality.IMAGE, Modality.AUDIO])
    hashes = {item.sha256 for post in every for item in post.media}
    assert len(hashes) == 2 * len(every) > 10
    picture, clip = (store.get(item.sha256) for item in every[0].media)
    with Image.open(io.BytesIO(picture)) as opened:
        assert (opened.format, opened.size) == ("JPEG", load.PICTURE_SIZE)
    assert sounds.decode(clip, 30.0).size == load.CLIP_S * sounds.SAMPLE_RATE_HZ


def test_a_number_changes_the_hash_and_nothing_that_is_decoded() -> None:
    (picture,), (clip,) = load.pictures(1), load.clips(1)
    for content, decode in (
        (picture, lambda content: np.asarray(pictures.decode(content, 224, 40_000_000))),
        (clip, lambda content: sounds.decode(content, 30.0)),
    ):
        one, other = load.numbered(content, 1), load.numbered(content, 2)
        assert len({hashlib.sha256(each).digest() for each in (content, one, other)}) == 3
        np.testing.assert_array_equal(decode(content), decode(other))
