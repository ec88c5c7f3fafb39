"""The independent count: what the input file says against what Postgres, the API and `sentiments` have.

Nothing of the system's own arithmetic is used, but its contract.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from kafka import KafkaConsumer, TopicPartition

from protos.crowdtone.v1 import api_pb2, events_pb2
from tests.faults.feed import TOPICS, Plan
from tests.faults.system import System

GRAINS: Final = {1: "minute", 2: "hour", 3: "day"}
MICRO: Final = 1e-6
SAME_SCORE: Final = 0.02
"""Batches round differently: the same words may differ by this much, another post's vector by far more."""

Bucket = tuple[str, int, datetime, str, str]
"""Topic, grain, start of the bucket, platform, language."""


@dataclass(frozen=True, slots=True)
class Count:
    """posts: in the input. lost: of those, without their complete verdict, or missing in a trend.
    duplicated: rows or trend counts too many. problems: whatever else is not as it should be."""

    posts: int
    lost: int
    duplicated: int
    problems: tuple[str, ...] = field(default=())


@dataclass
class Published:
    """The highest revision of each post in `sentiments`, read on from where the last look ended."""

    address: str
    revisions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    positions: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def look(self) -> None:
        for partition, offset, value in records(self.address, "sentiments", self.positions):
            sentiment = events_pb2.PostSentiment.FromString(value)
            self.revisions[sentiment.post_id] = max(self.revisions[sentiment.post_id], sentiment.revision)
            self.positions[partition] = offset + 1


def records(
    address: str, topic: str, positions: dict[int, int] | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Partition, offset and value of every record up to the end as it is now."""
    consumer = KafkaConsumer(
        bootstrap_servers=address, group_id=None, enable_auto_commit=False, max_poll_records=2000
    )
    try:
        partitions = [
            TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))
        ]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        for each in partitions:
            consumer.seek(each, (positions or {}).get(each.partition, 0))
        while any(consumer.position(each) < ends[each] for each in partitions):
            for batch in consumer.poll(timeout_ms=500).values():
                for record in batch:
                    yield record.partition, record.offset, record.value
    finally:
        consumer.close()


def recount(system: System, plan: Plan, file: Path, published: Published) -> Count:
    """Everything that must hold once the posts of `file` were drained."""
    posts = [json.loads(line) for line in file.read_text().splitlines()]
    wanted = {f"{post['platform']}:{post['id']}": post for post in posts}
    assert len(wanted) == len(posts)
    problems: list[str] = []

    rows = system.rows(
        """SELECT post_id, event_time, platform, language, topics, text, expected & ~answered = 0, revision,
             score_micro, used FROM posts WHERE post_id LIKE %s""",
        f"%:{plan.name}-%",
    )
    found = Counter(row[0] for row in rows)
    complete = {row[0] for row in rows if row[6]}
    lost = sum(post_id not in complete for post_id in wanted)
    duplicated = sum(count - 1 for count in found.values()) + sum(post_id not in wanted for post_id in found)
    problems += _wrong_rows(wanted, rows)

    expected = _expected(posts)
    kept = _kept(system, plan)
    everything = {bucket for bucket in expected | kept if bucket[0] == "*" and bucket[1] == 1}
    lost = max(lost, sum(max(0, expected[each] - kept[each]) for each in everything))
    duplicated = max(duplicated, sum(max(0, kept[each] - expected[each]) for each in everything))
    wrong = [each for each in expected | kept if expected[each] != kept[each]]
    if wrong:
        problems.append(f"{len(wrong)} trend rows are not what the input says, such as {wrong[0]}")
    problems += _wrong_answers(system, plan, set(wanted), expected)

    published.look()
    unpublished = [row[0] for row in rows if published.revisions[row[0]] != row[7]]
    if unpublished:
        problems.append(f"{len(unpublished)} verdicts are not in sentiments as they stand: {unpublished[0]}")
    verified = json.loads(system.pipeline.crowdtone("verify", "--json"))
    if not verified["holds"]:
        problems.append("crowdtone verify found differences")
    return Count(len(posts), lost, duplicated, tuple(problems))


def _wrong_rows(wanted: dict[str, Any], rows: list[tuple[Any, ...]]) -> list[str]:
    """Rows that are not the post of the input, and verdicts that words alone do not explain."""
    problems = []
    scores: dict[str, list[float]] = defaultdict(list)
    for post_id, event_time, platform, language, topics, text, _, _, score_micro, used in rows:
        post = wanted.get(post_id)
        if post is None:
            continue
        said = (post["created_at"], post["platform"], post["lang"], _topics(post), post["text"])
        if (event_time.astimezone(UTC).isoformat(), platform, language, sorted(topics), text) != said:
            problems.append(f"{post_id} is not the post that was offered")
        if not post["media"]:
            scores[text].append(score_micro * MICRO)
            if used != 1 << events_pb2.MODALITY_TEXT:
                problems.append(f"{post_id} was judged by {used:b}, not by its words")
    for text, values in scores.items():
        if max(values) - min(values) > SAME_SCORE:
            problems.append(f"{text!r} was judged from {min(values):.3f} to {max(values):.3f}")
    return problems[:5]


def _topics(post: dict[str, Any]) -> list[str]:
    return sorted(name for name, word in TOPICS.items() if word in post["text"])


def _expected(posts: list[dict[str, Any]]) -> Counter[Bucket]:
    """How many posts each trend row must count."""
    counts: Counter[Bucket] = Counter()
    for post in posts:
        when = datetime.fromisoformat(post["created_at"])
        starts = {
            1: when.replace(second=0, microsecond=0),
            2: when.replace(minute=0, second=0, microsecond=0),
            3: when.replace(hour=0, minute=0, second=0, microsecond=0),
        }
        for topic in ["*", *_topics(post)]:
            for grain, start in starts.items():
                counts[topic, grain, start, post["platform"], post["lang"]] += 1
    return counts


def _kept(system: System, plan: Plan) -> Counter[Bucket]:
    """What the trend rows of the plan's days count."""
    rows = system.rows(
        """SELECT topic, grain, bucket, platform, language, posts FROM trends
           WHERE bucket >= date_trunc('day', %s, 'UTC') AND bucket < %s""",
        *(plan.starts, plan.ends),
    )
    return Counter({(topic, grain, start.astimezone(UTC), platform, language): posts
                    for topic, grain, start, platform, language, posts in rows})  # fmt: skip


def _wrong_answers(system: System, plan: Plan, wanted: set[str], expected: Counter[Bucket]) -> list[str]:
    """What the API says differently."""
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(plan.starts)
    end.FromDatetime(plan.ends)
    problems = []
    for topic in ("*", *TOPICS):
        which = api_pb2.TrendFilter(topic=topic, start_time=start, end_time=end)
        points = system.pipeline.api.QueryTrends(
            api_pb2.QueryTrendsRequest(filter=which, grain=api_pb2.GRAIN_HOUR)
        ).points
        said = sum(point.posts for point in points)
        true = sum(count for bucket, count in expected.items() if bucket[:2] == (topic, 2))
        if said != true:
            problems.append(f"the API counts {said} posts of {topic}, the input {true}")
    shown = set(system.pipeline.posts(api_pb2.TrendFilter(topic="*", start_time=start, end_time=end)))
    if shown != wanted:
        problems.append(f"the API lists {len(shown)} posts, the input {len(wanted)}")
    return problems
