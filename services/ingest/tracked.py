"""The tracked topics as Postgres has them, read again every few seconds."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from services.ingest.matching import Matcher
from shared import db, tables

log = logging.getLogger(__name__)


class TrackedTopics:
    """A matcher for the topics of now, or of when Postgres last answered."""

    def __init__(self, engine: sa.Engine, *, retry_s: float, refresh_s: float, now: float) -> None:
        """Reads them once. Raises Unavailable when Postgres stays away for `retry_s`."""
        self._engine = engine
        self._refresh_s = refresh_s
        self._next_s = now + refresh_s
        self._failing = False
        self._topics = db.retried(self._read, retry_s=retry_s, what="reading the tracked topics")
        self._matcher = Matcher(self._topics)
        log.info("%d tracked topics", len(self._topics))

    def matcher(self, now: float) -> Matcher:
        """now: seconds since the epoch. A Postgres that is away only makes the topics older: posts go on."""
        if now >= self._next_s:
            self._next_s = now + self._refresh_s
            try:
                topics = self._read()
                self._failing = False
            except SQLAlchemyError as error:
                if not self._failing:
                    log.warning("Postgres is away; going on with the topics of before: %s", error)
                self._failing = True
                return self._matcher
            if topics != self._topics:
                log.info("the tracked topics changed: %d now", len(topics))
                self._topics, self._matcher = topics, Matcher(topics)
        return self._matcher

    def _read(self) -> dict[str, list[str]]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(tables.topics.c.name, tables.topics.c.keywords))
            return {row.name: list(row.keywords) for row in rows}
