"""The encoder services' step: every post that expects an answer gets one, in its own partition."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shared import codec, topics
from shared.canary import Canary
from shared.encoding import Answers, Input, answers, encode_step
from shared.errors import ModelBroken
from shared.media import MediaStore
from shared.messages import Answer, EmbeddingBatch, Media, Modality, Output, Post, Record, TopicPartition
from shared.settings import MediaSettings
from shared.testing import NOON, FakeEncoder, post


@pytest.fixture
def media(tmp_path: Path) -> MediaStore:
    return MediaStore(MediaSettings(url=tmp_path.as_uri()))


def record(one: Post, partition: int, offset: int) -> Record:
    return Record("posts", partition, offset, one.post_id.encode(), codec.encode_post(one).value)


def step(
    records: Sequence[Record], media: MediaStore, slot: Modality = Modality.TEXT
) -> tuple[Sequence[Output], dict[TopicPartition, int], int]:
    encoder = FakeEncoder(slot)
    result = encode_step("text_encoder", encoder, media, canary=Canary(encoder))(records, NOON.timestamp())
    return result.outputs, dict(result.finished), result.posts


def batches(outputs: Sequence[Output]) -> dict[int | None, EmbeddingBatch]:
    return {output.partition: codec.decode_embeddings(output.value) for output in outputs}


def test_one_batch_for_each_partition_with_its_posts_in_order(media: MediaStore) -> None:
    records = [record(post(f"x:{number}"), number % 3, number // 3) for number in range(9)]
    outputs, finished, posts = step(records, media)
    found = batches(outputs)
    assert {n: [e.post.post_id for e in batch.entries] for n, batch in found.items()} == {
        n: [f"x:{n}", f"x:{n + 3}", f"x:{n + 6}"] for n in range(3)
    }
    assert finished == {TopicPartition("posts", n): 3 for n in range(3)}
    assert posts == 9
    alone, _, _ = step(records[:1], media)
    (entry,) = batches(alone)[0].entries
    assert entry.answer.vector is not None
    together = found[0].entries[0].answer.vector
    assert together is not None
    np.testing.assert_array_equal(entry.answer.vector, together)


def test_the_same_records_give_the_same_event_id(media: MediaStore) -> None:
    records = [record(post("x:1"), 2, 40), record(post("x:2"), 2, 41)]
    (first,), (second,) = step(records, media)[0], step(records, media)[0]
    assert dict(first.headers)["ce_id"] == dict(second.headers)["ce_id"] == b"posts/2/40-41/text"


def test_a_post_that_expects_nothing_from_here_is_passed_over(media: MediaStore) -> None:
    outputs, finished, posts = step([record(post("x:1"), 0, 5)], media, Modality.IMAGE)
    assert outputs == []
    assert finished == {TopicPartition("posts", 0): 6}
    assert posts == 0


def test_what_is_no_post_is_a_dead_letter_and_its_neighbours_are_answered(media: MediaStore) -> None:
    junk = Record("posts", 0, 1, b"k", b"\xff\xff\xff")
    outputs, finished, posts = step([record(post("x:1"), 0, 0), junk, record(post("x:2"), 0, 2)], media)
    dead = [output for output in outputs if output.topic == "posts.dlq"]
    assert [output.value for output in dead] == [junk.value]
    (batch,) = [output for output in outputs if output.topic == "embeddings"]
    assert [e.post.post_id for e in codec.decode_embeddings(batch.value).entries] == ["x:1", "x:2"]
    assert finished == {TopicPartition("posts", 0): 3}
    assert posts == 2


def test_media_that_cannot_be_read_is_absent_with_the_reason(media: MediaStore) -> None:
    expected = frozenset({Modality.TEXT, Modality.IMAGE})

    def pictured(id: str, *items: Media) -> Post:
        return post(id, media=items, expected=expected)

    stored = Media(Modality.IMAGE, media.put(b"pixels"))
    lost, unfetched = Media(Modality.IMAGE, "a" * 64), Media(Modality.IMAGE, "")
    sound = Media(Modality.AUDIO, stored.sha256)
    posts = [
        pictured("x:good", stored),
        pictured("x:lost", lost),
        pictured("x:unfetched", unfetched),
        pictured("x:none"),
        pictured("x:sound", sound),
        pictured("x:both", lost, stored),
        pictured("x:no-hash", Media(Modality.IMAGE, "../../x")),
    ]
    outputs, _, _ = step([record(one, 0, n) for n, one in enumerate(posts)], media, Modality.IMAGE)
    answers = {entry.post.post_id: entry.answer for entry in batches(outputs)[0].entries}
    assert answers["x:good"].vector is not None
    assert answers["x:both"].vector is not None, "one readable picture is enough"
    assert "not in the store" in answers["x:lost"].absent_reason
    assert "not fetched" in answers["x:unfetched"].absent_reason
    assert "no image" in answers["x:none"].absent_reason
    assert "no image" in answers["x:sound"].absent_reason
    assert "not a SHA-256" in answers["x:no-hash"].absent_reason


def test_an_empty_text_is_answered_absent(media: MediaStore) -> None:
    outputs, _, _ = step([record(post("x:1", text=""), 0, 0)], media)
    (entry,) = batches(outputs)[0].entries
    assert entry.answer == Answer(None, "empty")


def test_a_batch_of_long_posts_is_cut_to_fit_the_brokers(media: MediaStore) -> None:
    """100 posts of 256 KB each, of which one record could hold 32."""
    records = [record(post(f"x:{n}", text="€" * 65_536 + "🙂" * 16_000), 1, n) for n in range(100)]
    outputs, finished, _ = step(records, media)
    assert len(outputs) > 3
    assert {output.partition for output in outputs} == {1}
    assert max(len(output.value) for output in outputs) < topics.MAX_MESSAGE_BYTES - 64 * 1024
    answered = [e.post.post_id for output in outputs for e in codec.decode_embeddings(output.value).entries]
    assert answered == [f"x:{n}" for n in range(100)]
    assert len({dict(output.headers)["ce_id"] for output in outputs}) == len(outputs)
    assert finished == {TopicPartition("posts", 1): 100}


class Failing(FakeEncoder):
    """Says nothing of posts that start with "poison", and of anything once it is broken."""

    broken = turned = False

    def __init__(self, slot: Modality = Modality.TEXT) -> None:
        super().__init__(slot)
        self.sizes: list[int] = []

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        self.sizes.append(len(inputs))
        return super().encode(inputs)

    def _answer(self, item: Input) -> Answer:
        if self.broken or item.text.startswith("poison"):
            return answers([RuntimeError()])[0]
        found = super()._answer(item)
        return Answer(-found.vector) if self.turned and found.vector is not None else found


def test_a_batch_of_poison_is_absent_one_by_one_and_does_not_stop_the_service(media: MediaStore) -> None:
    encoder = Failing()
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder))
    records = [record(post(f"x:{n}", text="poison"), 0, n) for n in range(500)]
    result = run(records, NOON.timestamp())
    *letters, batch = result.outputs
    assert [letter.topic for letter in letters] == ["posts.dlq"] * 500
    assert result.posts == 500, "answered, so they are none of the dead letters in a row that end a service"
    assert {entry.answer.vector is None for entry in codec.decode_embeddings(batch.value).entries} == {True}
    assert encoder.sizes == [1, 500, 1], "the canary was asked at the start and after the batch"


def test_what_the_model_fails_on_is_answered_and_alone_is_a_dead_letter(media: MediaStore) -> None:
    encoder = Failing()
    records = [
        record(post("x:good"), 0, 7),
        record(post("x:bad", text="poison"), 0, 8),
        record(post("x:empty", text=""), 0, 9),
    ]
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder))
    letter, batch = run(records, NOON.timestamp()).outputs
    assert (letter.topic, letter.value, letter.key) == ("posts.dlq", records[1].value, b"x:bad")
    headers = dict(letter.headers)
    assert (headers["partition"], headers["offset"], headers["service"]) == (b"0", b"8", b"text_encoder")
    assert headers["reason"] == b"text: the model failed on it: RuntimeError"
    absent = [entry.answer.absent_reason for entry in codec.decode_embeddings(batch.value).entries]
    assert absent == ["", "the model failed on it: RuntimeError", "empty"]


@pytest.mark.parametrize("count", [1, 500])
def test_a_broken_model_ends_the_service_whatever_the_size_of_the_batch(
    media: MediaStore, count: int
) -> None:
    encoder = Failing()
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder))
    encoder.broken = True
    with pytest.raises(ModelBroken, match="fails on a good input: the model failed on it: RuntimeError"):
        run([record(post(f"x:{n}"), 0, n) for n in range(count)], NOON.timestamp())


@pytest.mark.parametrize(
    ("broken", "reason"), [(True, "fails on a good input"), (False, "vector has turned")]
)
def test_an_idle_model_is_asked_now_and_then(media: MediaStore, broken: bool, reason: str) -> None:
    encoder = Failing()
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder), canary_s=60)
    for second in range(181):
        run([], NOON.timestamp() + second)
    assert len(encoder.sizes) == 1 + 3
    encoder.broken, encoder.turned = broken, True
    with pytest.raises(ModelBroken, match=reason):
        run([], NOON.timestamp() + 240)


def test_a_model_that_does_not_work_at_the_start_does_not_start() -> None:
    encoder = Failing()
    encoder.broken = True
    with pytest.raises(ModelBroken):
        Canary(encoder)


@pytest.mark.parametrize("slot", [Modality.TEXT, Modality.IMAGE, Modality.AUDIO])
def test_every_encoder_has_an_input_that_is_known(slot: Modality) -> None:
    Canary(FakeEncoder(slot)).check()


def test_media_are_held_a_few_at_a_time(media: MediaStore) -> None:
    """100 pictures of 1 MB in one poll with room for 10, and one post with 30 of them."""
    picture = Media(Modality.IMAGE, media.put(bytes(range(250)) * 4_000))
    expected = frozenset({Modality.TEXT, Modality.IMAGE})
    posts = [post(f"x:{n}", media=(picture,), expected=expected) for n in range(100)]
    posts.append(post("x:many", media=(picture,) * 30, expected=expected))
    held: list[int] = []

    class Counting(FakeEncoder):
        def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
            held.append(sum(len(content) for item in inputs for content in item.media))
            return super().encode(inputs)

    encoder = Counting(Modality.IMAGE)
    run = encode_step("image_encoder", encoder, media, canary=Canary(encoder), media_bytes=10_000_000)
    (output,) = run([record(one, 0, n) for n, one in enumerate(posts)], NOON.timestamp()).outputs
    answers = codec.decode_embeddings(output.value).entries
    assert [entry.post.post_id for entry in answers] == [one.post_id for one in posts]
    assert all(entry.answer.vector is not None for entry in answers)
    assert max(held) <= 10_000_000
    assert len(held) == 1 + 11


class Kept(dict[bytes, Answers]):
    """A cache in memory."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Answers]:  # type: ignore[override]
        return {key: self[key] for key in keys if key in self}

    def put(self, answers: Mapping[bytes, Answers]) -> None:
        self.update(answers)


class Slow(FakeEncoder):
    """Begins to encode "slow" and ends when it may; `broken`, it then fails as a whole."""

    def __init__(self) -> None:
        super().__init__(Modality.TEXT)
        self.begun, self.may_end, self.broken = threading.Event(), threading.Event(), False
        self.asked: list[str] = []

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        self.asked += [item.text for item in inputs]
        if inputs[0].text == "slow":
            self.begun.set()
            assert self.may_end.wait(30)
            if self.broken:
                raise RuntimeError("no device")
        return super().encode(inputs)


def vectors(output: Output) -> list[list[float]]:
    found = [entry.answer.vector for entry in codec.decode_embeddings(output.value).entries]
    return [[] if vector is None else vector.tolist() for vector in found]


def test_what_another_turn_is_answering_is_waited_for(media: MediaStore) -> None:
    encoder = Slow()
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder), cache=Kept())
    encoder.asked.clear()
    with ThreadPoolExecutor(2) as turns:
        first = turns.submit(run, [record(post("x:1", text="slow"), 0, 0)], NOON.timestamp())
        assert encoder.begun.wait(30)
        posts = [post("x:2", text="new"), post("x:3", text="slow"), post("x:4", text="new")]
        again = turns.submit(run, [record(one, 0, n) for n, one in enumerate(posts, 1)], NOON.timestamp())
        with pytest.raises(TimeoutError):
            again.result(0.2)
        encoder.may_end.set()
        (slow,) = vectors(*first.result(30).outputs)
        new, also_slow, also_new = vectors(*again.result(30).outputs)
    assert encoder.asked == ["slow", "new"]
    assert also_slow == slow
    assert also_new == new != slow
    assert run([record(posts[1], 0, 4)], NOON.timestamp()).posts == 1
    assert encoder.asked == ["slow", "new"], "it is in the cache"


def test_a_turn_that_fails_fails_those_that_wait_for_it_and_is_not_remembered(media: MediaStore) -> None:
    encoder = Slow()
    run = encode_step("text_encoder", encoder, media, canary=Canary(encoder), cache=Kept())
    encoder.broken = True
    with ThreadPoolExecutor(2) as turns:
        records = [record(post("x:1", text="slow"), 0, 0)]
        first = turns.submit(run, records, NOON.timestamp())
        assert encoder.begun.wait(30)
        again = turns.submit(run, records, NOON.timestamp())
        with pytest.raises(TimeoutError):
            again.result(0.2)
        encoder.may_end.set()
        for turn in (first, again):
            with pytest.raises(RuntimeError, match="no device"):
                turn.result(30)
    encoder.broken = False
    assert run(records, NOON.timestamp()).posts == 1
