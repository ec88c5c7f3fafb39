"""Which windows are to be judged, and when. Pure but for its own state: no clock, no Kafka, no database.

Times in event time end in `_s` and are of the posts; `now` is the clock's. A window closes when the newest
event time has passed its end by `lateness_s`; it is judged when it has been quiet for a moment, sooner where
it is closed, and one that is never quiet every `max_wait_s`. A change also moves the baseline of the windows
after it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from services.alerts.settings import AlertsSettings


@dataclass(slots=True)
class _Touch:
    first: float
    last: float


class Pending:
    """Windows in which something arrived since they were judged. Filled by one thread, emptied by another."""

    def __init__(self, settings: AlertsSettings, *, window_s: int, baseline_windows: int) -> None:
        self._settings = settings
        self._window_s = window_s
        self._baseline_windows = baseline_windows
        self._touched: dict[tuple[str, int], _Touch] = {}
        self._newest_s = float("-inf")
        self._lock = threading.Lock()

    def start_of(self, event_time_s: float) -> int:
        """Start of the window that an event time is in."""
        return int(event_time_s // self._window_s) * self._window_s

    def touch(self, topics: Iterable[str], event_time_s: float, now: float) -> None:
        """A verdict of these topics arrived."""
        start_s = self.start_of(event_time_s)
        with self._lock:
            self._newest_s = max(self._newest_s, event_time_s)
            for topic in topics:
                touch = self._touched.get((topic, start_s))
                if touch is None:
                    self._touched[topic, start_s] = _Touch(now, now)
                else:
                    touch.last = now

    def take(self, now: float, *, everything: bool = False) -> dict[str, set[int]]:
        """topic -> starts of the windows to judge now; they are pending no longer.

        With each comes what its baseline moves: the windows after it, but those that wait for their own
        moment.
        """
        with self._lock:
            due = [
                key for key, touch in self._touched.items() if everything or self._is_due(key[1], touch, now)
            ]
            for key in due:
                del self._touched[key]
            judged: dict[str, set[int]] = defaultdict(set)
            for topic, start_s in due:
                judged[topic].update(
                    later_s
                    for later_s in range(
                        start_s, start_s + (self._baseline_windows + 1) * self._window_s, self._window_s
                    )
                    if later_s == start_s or (topic, later_s) not in self._touched
                )
        return dict(judged)

    def _is_due(self, start_s: int, touch: _Touch, now: float) -> bool:
        closed = start_s + self._window_s + self._settings.lateness_s <= self._newest_s
        settle_s = self._settings.settle_s if closed else self._settings.open_settle_s
        return now - touch.last >= settle_s or now - touch.first >= self._settings.max_wait_s
