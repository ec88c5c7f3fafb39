"""Live streams over a real Postgres and a real Kafka, and without one."""

from __future__ import annotations

import queue
import threading
import time
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest

from protos.crowdtone.v1 import api_pb2 as pb
from shared import codec, topics
from shared.errors import Unavailable
from shared.kafka import Sink, Tail
from shared.messages import Label, Modality, ModalityWeight, PostSentiment, Verdict
from shared.settings import KafkaSettings
from shared.testing import NOON, post

Point = tuple[Any, int, int, int]


class Stream:
    """A stream read on a thread of its own; `next` waits for a message."""

    def __init__(self, api: Any, **fields: Any) -> None:
        grain = fields.pop("grain", pb.GRAIN_MINUTE)
        self.call = api.StreamTrends(pb.StreamTrendsRequest(filter=pb.TrendFilter(**fields), grain=grain))
        self._messages: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self.call:
                self._messages.put(message)
            self._messages.put(None)
        except grpc.RpcError as error:
            self._messages.put(error)

    def next(self, timeout_s: float = 15) -> list[Point]:
        """(bucket, posts, negative, positive) of each point of the next message."""
        message = self._messages.get(timeout=timeout_s)
        assert isinstance(message, pb.StreamTrendsResponse), message
        return [
            (point.bucket_start.ToDatetime(tzinfo=UTC), point.posts, point.negative, point.positive)
            for point in message.points
        ]

    def end(self, timeout_s: float = 15) -> grpc.StatusCode:
        while True:
            message = self._messages.get(timeout=timeout_s)
            if isinstance(message, grpc.RpcError):
                return message.code()

    def nothing(self, for_s: float) -> bool:
        try:
            self._messages.get(timeout=for_s)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.call.cancel()
        self._thread.join()


def publish(kafka: KafkaSettings, post_id: str, event_time: Any, *names: str) -> None:
    """What fusion writes to `sentiments` once a post's row is committed."""
    sentiment = PostSentiment(
        post=post(post_id, event_time=event_time, topics=names),
        revision=1,
        verdict=Verdict(
            Label.POSITIVE, (0.1, 0.2, 0.7), 0.6, (ModalityWeight(Modality.TEXT, 0.6),), {}, "test@1"
        ),
        complete=True,
        classified_time=event_time,
    )
    with Sink(kafka) as sink:
        sink.write(codec.encode_sentiments([sentiment]))


def wait_until(condition: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


LATER = NOON + timedelta(minutes=5)


def test_a_change_told_by_kafka_is_sent_and_only_what_changed(
    serving: Any, rows: Any, kafka: KafkaSettings
) -> None:
    rows.topic("tea", "coffee")
    rows.post("a:1", NOON, of=("tea",))
    opened = threading.Event()

    def open_tail() -> Tail:
        tail = Tail(kafka, topics.SENTIMENTS.name)
        opened.set()
        return tail

    # With a refresh of ten minutes, what arrives within seconds arrives by Kafka.
    with serving(open_tail=open_tail, stream_refresh_s=600, stream_interval_s=0.1) as served:
        stream, of_coffee = Stream(served.stub, topic="tea"), Stream(served.stub, topic="coffee")
        assert stream.next() == [(NOON, 1, 0, 1)]
        assert of_coffee.next() == []
        assert opened.wait(15)
        rows.post("a:2", LATER, Label.NEGATIVE, of=("tea",))
        rows.post("a:3", NOON, of=("tea",))
        # A new tail begins at the end, wherever that is by the time it has asked: publish until it is heard.
        deadline = time.monotonic() + 30
        while True:
            publish(kafka, "a:2", LATER, "tea")
            try:
                # One record says one minute changed: the other is not even looked at.
                assert stream.next(timeout_s=1) == [(LATER, 1, 1, 0)]
                break
            except queue.Empty:
                assert time.monotonic() < deadline, "the change was never heard of"
        publish(kafka, "a:3", NOON, "tea")
        assert stream.next() == [(NOON, 2, 0, 2)]
        # The same again changes nothing, so nothing is sent.
        publish(kafka, "a:3", NOON, "tea")
        assert stream.nothing(for_s=1.5)
        assert of_coffee.nothing(for_s=0.1)
        stream.close()
        of_coffee.close()


def test_without_kafka_a_stream_looks_every_few_seconds(serving: Any, rows: Any) -> None:
    rows.topic("tea")
    with serving(stream_refresh_s=0.3, stream_interval_s=0.1) as served:
        stream = Stream(served.stub, topic="tea", grain=pb.GRAIN_HOUR)
        assert stream.next() == []
        rows.post("a:1", NOON, of=("tea",))
        assert stream.next() == [(NOON, 1, 0, 1)]
        rows.post("a:2", NOON + timedelta(hours=1), of=("tea",))
        assert stream.next() == [(NOON + timedelta(hours=1), 1, 0, 1)]
        rows.retract("a:1")
        assert stream.next() == [(NOON, 0, 0, 0)]  # once, so that a page can take the point away
        assert stream.nothing(for_s=1.0)
        stream.close()


def test_a_stream_outlives_a_kafka_that_comes_and_goes(serving: Any, rows: Any, kafka: KafkaSettings) -> None:
    """The first attempt finds no broker; the reader tries again by itself."""
    attempts: list[float] = []

    def open_tail() -> Tail:
        attempts.append(time.monotonic())
        chosen = kafka if len(attempts) > 1 else kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
        return Tail(chosen, topics.SENTIMENTS.name)

    rows.topic("tea")
    with serving(open_tail=open_tail, stream_refresh_s=0.3, stream_interval_s=0.1) as served:
        stream = Stream(served.stub, topic="tea")
        assert stream.next() == []
        wait_until(lambda: len(attempts) >= 2, timeout_s=30)
        rows.post("a:1", NOON, of=("tea",))
        assert stream.next() == [(NOON, 1, 0, 1)]
        stream.close()


def test_streams_are_bounded_and_a_cancelled_one_makes_room(serving: Any, rows: Any) -> None:
    rows.topic("tea")
    with serving(max_streams=2, threads=1) as served:
        first, second = Stream(served.stub, topic="tea"), Stream(served.stub, topic="tea")
        assert first.next() == second.next() == []
        assert Stream(served.stub, topic="tea").end() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Queries and pictures have threads of their own whatever the streams do.
        assert served.stub.ListTopics(pb.ListTopicsRequest(), timeout=10).topics[0].name == "tea"
        with pytest.raises(grpc.RpcError) as caught:
            list(served.stub.GetMedia(pb.GetMediaRequest(sha256="0" * 64), timeout=10))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        first.close()
        second.close()

        def room() -> bool:
            third = Stream(served.stub, topic="tea")
            try:
                return third.next() == []
            except AssertionError:
                return False
            finally:
                third.close()

        wait_until(room)


def test_streams_end_with_the_server_and_say_so(serving: Any, rows: Any) -> None:
    rows.topic("tea")
    with serving() as served:
        stream = Stream(served.stub, topic="tea")
        assert stream.next() == []
        began = time.monotonic()
        drained = served.server.stop(30)
        served.live.stop()
        assert stream.end() is grpc.StatusCode.UNAVAILABLE
        assert drained.wait(10)
        assert time.monotonic() - began < 10


def test_a_stream_of_a_deleted_topic_ends(serving: Any, rows: Any) -> None:
    rows.topic("tea")
    with serving(stream_refresh_s=0.2, stream_interval_s=0.1) as served:
        stream = Stream(served.stub, topic="tea")
        assert stream.next() == []
        served.stub.DeleteTopic(pb.DeleteTopicRequest(name="tea"))
        assert stream.end() is grpc.StatusCode.NOT_FOUND


def test_the_tail_says_when_there_is_no_broker(kafka: KafkaSettings) -> None:
    with Tail(kafka, topics.SENTIMENTS.name, poll_timeout_s=0.05) as tail:
        assert tail.poll() == []
    away = kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9"})
    with pytest.raises(Unavailable):
        Tail(away, topics.SENTIMENTS.name)
