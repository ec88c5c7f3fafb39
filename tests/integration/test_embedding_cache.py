"""Reposts are answered from Redis; what may come out otherwise is not kept, and nothing depends on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis as redis_py

from shared import codec, heartbeat
from shared.canary import Canary
from shared.embedding_cache import EmbeddingCache
from shared.encoding import NO_SPEECH, Answers, Input, content_key, encode_step
from shared.media import MediaStore
from shared.messages import Answer, Media, Modality, Post, Record, Step
from shared.settings import MediaSettings, RedisSettings, TextModelSettings
from shared.testing import NOON, FakeEncoder, post

VOICED = frozenset({Modality.TEXT, Modality.AUDIO, Modality.SPEECH})


class Counting(FakeEncoder):
    """Counts what it is asked, and fails while `failing`."""

    failing = False

    def __init__(self, slot: Modality = Modality.TEXT) -> None:
        super().__init__(slot)
        self.asked: list[Input] = []

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        self.asked += inputs
        if self.failing:
            absent = Answer(None, "the model failed on it: OutOfMemoryError")
            return [dict.fromkeys(self.slots, absent) for _ in inputs]
        return super().encode(inputs)


class Hearing(Counting):
    """A voice in every sound, and words in those that begin with them."""

    def __init__(self) -> None:
        super().__init__(Modality.AUDIO)
        self.slots = (Modality.AUDIO, Modality.SPEECH)
        self.dimensions = {Modality.AUDIO: 4, Modality.SPEECH: 4}

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        answers: list[Answers] = []
        for item, answer in zip(inputs, super().encode(inputs), strict=True):
            speech = Answer(None, NO_SPEECH)
            if item.media[0].startswith(b"words"):
                speech = Answer(np.ones(4, np.float16), "", f"wörter in {item.language}")
            answers.append({**answer, Modality.SPEECH: speech})
        return answers


@pytest.fixture
def client(redis: RedisSettings) -> Iterator[redis_py.Redis]:
    with heartbeat.connect(redis) as connected:
        yield connected


@pytest.fixture
def media(tmp_path: Path) -> MediaStore:
    return MediaStore(MediaSettings(url=tmp_path.as_uri()))


def stepping(encoder: Counting, client: redis_py.Redis, media: MediaStore) -> Step:
    step = encode_step(
        "text_encoder",
        encoder,
        media,
        canary=Canary(encoder),
        cache=EmbeddingCache(client, encoder, ttl_s=60),
    )
    encoder.asked.clear()
    return step


def answers(step: Step, *posts: Post) -> list[Answers]:
    records = [
        Record("posts", 0, offset, post.post_id.encode(), codec.encode_post(post).value)
        for offset, post in enumerate(posts)
    ]
    batches = [codec.decode_embeddings(output.value) for output in step(records, NOON.timestamp()).outputs]
    return [
        {batch.modality: batch.entries[i].answer for batch in batches} for i in range(len(batches[0].entries))
    ]


def same(one: Answers, other: Answers) -> bool:
    return one.keys() == other.keys() and all(
        (replace(one[slot], vector=None) == replace(other[slot], vector=None))
        and np.array_equal(one[slot].vector, other[slot].vector)  # type: ignore[arg-type]
        for slot in one
    )


def test_a_repost_costs_no_model_run_in_its_batch_or_later(client: redis_py.Redis, media: MediaStore) -> None:
    encoder = Counting()
    step = stepping(encoder, client, media)
    first = answers(step, post("x:1", text="alpha"), post("x:2", text="beta"), post("x:3", text="alpha"))
    assert [item.text for item in encoder.asked] == ["alpha", "beta"]
    assert same(first[0], first[2])
    later = answers(step, post("x:4", text="beta"), post("x:5", text="gamma"), post("x:6", text="alpha"))
    assert [item.text for item in encoder.asked] == ["alpha", "beta", "gamma"]
    assert same(later[0], first[1])
    assert same(later[2], first[0])


def test_what_is_kept_expires(client: redis_py.Redis, media: MediaStore) -> None:
    encoder = Counting()
    step = stepping(encoder, client, media)
    answers(step, post("x:1", text="alpha"))
    (key,) = client.keys("crowdtone:embedding:*")
    assert 0 < client.ttl(key) <= 60
    client.expire(key, 0)
    answers(step, post("x:2", text="alpha"))
    assert len(encoder.asked) == 2


def test_an_answer_that_a_busy_machine_gave_is_not_kept(client: redis_py.Redis, media: MediaStore) -> None:
    encoder = Counting()
    cache = EmbeddingCache(client, encoder, ttl_s=60)
    key = content_key(Modality.TEXT, post("x:1"))
    assert key is not None
    for reason in ("the model failed on it: OutOfMemoryError", "took more than 3 s to decode", "empty"):
        cache.put({key: {Modality.TEXT: Answer(None, reason)}})
    assert client.keys("*") == []
    assert cache.get([key]) == {}


def test_another_model_or_other_settings_find_nothing(client: redis_py.Redis) -> None:
    encoder, newer = Counting(), Counting()
    newer.model_version = "fake@2"
    short = TextModelSettings(max_tokens=64)
    known = {b"key": encoder.encode([Input("alpha")])[0]}
    EmbeddingCache(client, encoder, TextModelSettings(), ttl_s=60, prefix="one.").put(known)
    caches = [
        EmbeddingCache(client, encoder, TextModelSettings(), ttl_s=60, prefix="one."),
        EmbeddingCache(client, newer, TextModelSettings(), ttl_s=60, prefix="one."),
        EmbeddingCache(client, encoder, short, ttl_s=60, prefix="one."),
        EmbeddingCache(client, encoder, TextModelSettings(), ttl_s=60, prefix="two."),
    ]
    assert [list(cache.get([b"key"])) for cache in caches] == [[b"key"], [], [], []]


def test_a_sound_keeps_its_words_and_that_there_are_none(client: redis_py.Redis, media: MediaStore) -> None:
    encoder = Hearing()
    step = stepping(encoder, client, media)
    spoken, played = (Media(Modality.AUDIO, media.put(content)) for content in (b"words", b"music"))
    posts = [
        post("x:1", media=(spoken,), expected=VOICED, language="de"),
        post("x:2", media=(played,), expected=VOICED, language="de"),
    ]
    first = answers(step, *posts)
    assert first[0][Modality.SPEECH].transcript == "wörter in de"
    assert first[1][Modality.SPEECH].absent_reason == NO_SPEECH
    again = answers(step, *(replace(each, post_id=f"{each.post_id}again") for each in posts))
    assert all(map(same, first, again))
    assert len(encoder.asked) == 2
    answers(step, replace(posts[0], language="tr"))
    assert len(encoder.asked) == 3, "the language is a hint for the words"


def test_a_known_picture_is_not_read_from_the_store_again(client: redis_py.Redis, tmp_path: Path) -> None:
    media = MediaStore(MediaSettings(url=(tmp_path / "media").as_uri()))
    encoder = Counting(Modality.IMAGE)
    step = stepping(encoder, client, media)
    expected = frozenset({Modality.TEXT, Modality.IMAGE})
    picture = Media(Modality.IMAGE, media.put(b"pixels"))
    first = answers(step, post("x:1", media=(picture,), expected=expected, language="en", text="one"))
    empty = MediaStore(MediaSettings(url=(tmp_path / "empty").as_uri()))
    elsewhere = stepping(encoder, client, empty)
    again = answers(elsewhere, post("x:2", media=(picture,), expected=expected, language="de", text="two"))
    assert same(first[0], again[0])
    assert encoder.asked == []


def test_several_pictures_are_never_kept() -> None:
    one, two = Media(Modality.IMAGE, "a" * 64), Media(Modality.IMAGE, "b" * 64)
    assert content_key(Modality.IMAGE, post("x:1", media=(one, two))) is None
    assert content_key(Modality.IMAGE, post("x:1", media=(Media(Modality.IMAGE, ""),))) is None
    assert content_key(Modality.TEXT, post("x:1", text="gone", deleted=True)) is None
    keys = {content_key(Modality.IMAGE, post("x:1", media=(each,))) for each in (one, two)}
    assert len(keys) == 2


def test_the_canary_asks_the_model_and_not_the_cache(client: redis_py.Redis, media: MediaStore) -> None:
    encoder = Counting()
    step = stepping(encoder, client, media)
    canary_text = "The canary sings: the quick brown fox is happy today."
    answers(step, post("x:1", text=canary_text))
    step([], NOON.timestamp() + 61)
    assert [item.text for item in encoder.asked] == [canary_text, canary_text]


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value[:-1],
        lambda value: value + b"x",
        lambda value: b"",
        lambda value: b"\xff" * len(value),
        lambda value: value[:5] + b"\xff" * 8,  # no numbers
        lambda value: b"\0\5\0\0\0empty",
    ],
)
def test_what_we_did_not_write_is_not_believed(
    client: redis_py.Redis, media: MediaStore, damage: object
) -> None:
    encoder = Counting()
    step = stepping(encoder, client, media)
    first = answers(step, post("x:1", text="alpha"))
    (key,) = client.keys("*")
    client.set(key, damage(client.get(key)))  # type: ignore[operator]
    assert same(answers(step, post("x:2", text="alpha"))[0], first[0])
    assert len(encoder.asked) == 2


def test_without_redis_the_model_answers_and_it_is_not_asked_every_time(
    media: MediaStore, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    encoder = Counting()
    with heartbeat.connect(RedisSettings(url="redis://127.0.0.1:1/0")) as away:
        asked = 0
        plain = away.mget

        def mget(keys: list[bytes]) -> object:
            nonlocal asked
            asked += 1
            return plain(keys)

        away.mget = mget
        cache = EmbeddingCache(away, encoder, ttl_s=60, clock=lambda: now)
        step = encode_step("text_encoder", encoder, media, canary=Canary(encoder), cache=cache)
        encoder.asked.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                (answer,) = answers(step, post("x:1", text="alpha"))
                assert answer[Modality.TEXT].vector is not None
        assert (asked, len(encoder.asked)) == (1, 5)
        now = 11.0
        answers(step, post("x:1", text="alpha"))
        assert asked == 2
    assert len([record for record in caplog.records if "Redis is away" in record.message]) == 1
