"""What an encoder said of the same content before, in Redis: a repost costs no model run.

Speed only. Whatever Redis does, a post is answered: from here, or by the model. Nothing that could come out
otherwise the next time is kept, and all that is kept expires.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import redis
from pydantic import BaseModel

from shared.encoding import NO_SPEECH, Answers, Encoder
from shared.messages import Answer

log = logging.getLogger(__name__)

PAUSE_S: Final = 10.0
"""An absent Redis is asked again only so often: its time-out of 1 s is then a tenth of the time at worst."""

LASTING: Final = frozenset({NO_SPEECH})
"""Reasons for an absent answer that the content alone decides. Any other could be a busy machine's."""

# Of each slot: whether a vector follows, and how many bytes of transcript or reason follow that.
_HEAD = struct.Struct("<?I")


class EmbeddingCache:
    """The answers of one encoder as it is configured now, by content; an absent Redis knows nothing."""

    def __init__(
        self,
        client: redis.Redis,
        encoder: Encoder,
        *shaped_by: BaseModel,
        ttl_s: int,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """shaped_by: settings that vectors depend on besides the model's version, as the longest text does:
        under other settings nothing that was kept is found.

        prefix: the deployment's topic prefix, so that two systems on one Redis keep apart.
        """
        self._client = client
        self._slots = tuple(encoder.slots)
        self._vector_bytes = {slot: 2 * encoder.dimensions[slot] for slot in self._slots}
        self._ttl_s = ttl_s
        self._clock = clock
        self._away_until = -1.0
        self._warned = False
        shape = "\n".join([encoder.model_version, *(settings.model_dump_json() for settings in shaped_by)])
        digest = hashlib.sha256(shape.encode()).hexdigest()[:16]
        self._prefix = f"crowdtone:embedding:{prefix}{digest}:".encode()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answers]:
        """The answers of those keys that are known; none while Redis is away."""
        if not keys or self._away():
            return {}
        try:
            values = self._client.mget([self._prefix + key for key in keys])
        except redis.RedisError as error:
            self._lost(error)
            return {}
        self._warned = False
        known = {
            key: self._decoded(value)
            for key, value in zip(keys, values, strict=True)
            if isinstance(value, bytes)
        }
        return {key: answers for key, answers in known.items() if answers is not None}

    def put(self, answers: Mapping[bytes, Answers]) -> None:
        """Keep those that will be the same whenever they are asked for, for `ttl_s`."""
        lasting = {key: each for key, each in answers.items() if all(map(_lasts, each.values()))}
        if not lasting or self._away():
            return
        pipeline = self._client.pipeline(transaction=False)
        for key, each in lasting.items():
            pipeline.set(self._prefix + key, self._encoded(each), ex=self._ttl_s)
        try:
            pipeline.execute()
        except redis.RedisError as error:
            self._lost(error)

    def _encoded(self, answers: Answers) -> bytes:
        parts = []
        for slot in self._slots:
            answer = answers[slot]
            words = (answer.absent_reason if answer.vector is None else answer.transcript).encode()
            parts.append(_HEAD.pack(answer.vector is not None, len(words)))
            if answer.vector is not None:
                parts.append(answer.vector.astype("<f2").tobytes())
            parts.append(words)
        return b"".join(parts)

    def _decoded(self, value: bytes) -> Answers | None:
        """None for what this encoder cannot have written: then the model is asked."""
        answers, at = {}, 0
        try:
            for slot in self._slots:
                present, length = _HEAD.unpack_from(value, at)
                at += _HEAD.size
                vector = None
                if present:
                    vector = np.frombuffer(value, "<f2", self._vector_bytes[slot] // 2, at)
                    at += vector.nbytes
                words = value[at : at + length].decode()
                at += length
                if vector is None:
                    answers[slot] = Answer(None, words)
                else:
                    answers[slot] = Answer(vector, "", words)
        except (struct.error, ValueError):
            return None
        whole = at == len(value) and all(
            each.vector is None or bool(np.isfinite(each.vector).all()) for each in answers.values()
        )
        return answers if whole and all(map(_lasts, answers.values())) else None

    def _away(self) -> bool:
        return self._clock() < self._away_until

    def _lost(self, error: redis.RedisError) -> None:
        self._away_until = self._clock() + PAUSE_S
        if not self._warned:
            log.warning("Redis is away, so the model is asked about reposts too: %s", error)
        self._warned = True


def _lasts(answer: Answer) -> bool:
    return answer.vector is not None or answer.absent_reason in LASTING
