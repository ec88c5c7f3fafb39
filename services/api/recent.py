"""Answers a moment old: what many ask at once is worked out once. Knows no gRPC and no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Answer(Generic[V]):
    """One answer, perhaps still being worked out. began_s: before anything was read for it."""

    __slots__ = ("began_s", "future", "size")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.future: Future[V] = Future()
        self.size = 0


class Recent(Generic[K, V]):
    """The answers of the last `max_age_s`, each whole, as it was read; of the same key never two at work.

    An answer's age counts from before it was read: nobody gets one that is based on anything older than
    `max_age_s` before they asked. Those who ask while it is worked out wait for it, and share its failure;
    a failure is not kept. Safe to use from many threads.
    """

    def __init__(
        self,
        *,
        max_age_s: float,
        max_size: int,
        size: Callable[[V], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """max_age_s: 0 to work out every answer anew. max_size: the oldest go when the sizes come to more."""
        self._max_age_s = max_age_s
        self._max_size = max_size
        self._size_of = size
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[K, _Answer[V]] = {}  # in the order they began
        self._size = 0

    def get(self, key: K, work: Callable[[], V]) -> V:
        """An answer to `key` that is young enough, else `work()`. Raises what that raises."""
        if not self._max_age_s:
            return work()
        now = self._clock()
        with self._lock:
            known = self._answers.get(key)
            if known is None or known.began_s < now - self._max_age_s:
                self._drop_old(now)
                own = self._answers[key] = _Answer[V](now)
            else:
                own = None
        if own is None:
            assert known is not None
            return known.future.result()
        try:
            value = work()
        except BaseException as error:
            with self._lock:
                if self._answers.get(key) is own:
                    del self._answers[key]
            own.future.set_exception(error)
            raise
        own.future.set_result(value)
        with self._lock:
            if self._answers.get(key) is own:
                own.size = self._size_of(value)
                self._size += own.size
                while self._size > self._max_size:
                    self._drop(next(iter(self._answers)))
        return value

    def clear(self) -> None:
        """Forget everything, also what is being worked out: it was begun before something changed."""
        with self._lock:
            self._answers.clear()
            self._size = 0

    def _drop_old(self, now: float) -> None:
        while self._answers:
            key, oldest = next(iter(self._answers.items()))
            if oldest.began_s >= now - self._max_age_s:
                return
            self._drop(key)

    def _drop(self, key: K) -> None:
        self._size -= self._answers.pop(key).size
