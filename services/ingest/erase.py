"""An author's posts taken back: a tombstone for each, down the same way as a deletion at the source."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from services.ingest.intake import tombstone
from shared import codec, tables
from shared.worker import Writable

BATCH_POSTS = 500


def posts_of(engine: sa.Engine, author_hash: str) -> list[tuple[str, str]]:
    """(post_id, platform) of every stored post of an author, by id."""
    posts = tables.posts
    statement = sa.select(posts.c.post_id, posts.c.platform).where(posts.c.author_hash == author_hash)
    with engine.connect() as connection:
        return [
            (row.post_id, row.platform) for row in connection.execute(statement.order_by(posts.c.post_id))
        ]


def retract(sink: Writable, posts: Sequence[tuple[str, str]]) -> None:
    """Write a tombstone for each; again does no harm. Raises Unavailable."""
    for start in range(0, len(posts), BATCH_POSTS):
        now = datetime.now(UTC)
        sink.write(
            [
                codec.encode_post(tombstone(post_id, platform, now))
                for post_id, platform in posts[start : start + BATCH_POSTS]
            ]
        )
