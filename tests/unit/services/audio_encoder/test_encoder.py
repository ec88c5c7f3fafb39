"""How the audio encoder makes batches and who computes them, with a model that repeats what it gets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor, nn

from services.audio_encoder.encoder import AudioEncoder, Clip
from services.audio_encoder.silero import Silero
from services.audio_encoder.sounds import SAMPLE_RATE_HZ
from services.audio_encoder.whisper import Heard, Whisper
from shared.e5 import E5
from shared.errors import InvalidMessage
from shared.messages import Modality


class Repeats:
    """Hears of each clip its loudness and, as the one word, how long it is."""

    version, dimension = "repeats@1", 1

    def __init__(self, together: int = 1) -> None:
        self.batches: list[list[int]] = []
        self.heard = threading.Event()
        self._together = threading.Barrier(together)

    def start(
        self, waveforms: Tensor, samples: Sequence[int], spoken: Tensor, hints: Sequence[str]
    ) -> Callable[[], list[Heard]]:
        self._together.wait(timeout=30)  # one batch alone would wait in vain
        seconds = [own // SAMPLE_RATE_HZ for own in samples]
        self.batches.append(seconds)
        self.heard.set()
        return lambda: [
            Heard(clip[:1].numpy(), str(own), hint)
            for clip, own, hint in zip(waveforms, seconds, hints, strict=True)
        ]


class Silent:
    """Hears nobody."""

    def spoken(self, waveforms: Tensor, samples: Sequence[int]) -> Tensor:
        return torch.zeros(len(samples), dtype=torch.bool)


def encoder(whisper: Repeats, threads: int = 1) -> AudioEncoder:
    network = nn.Linear(1, 1)
    e5 = E5(
        network,
        lambda texts: [[1] for _ in texts],
        dimension=3,
        pad_id=0,
        prefix="",
        max_tokens=16,
        model_version="letters@1",
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return AudioEncoder(
            cast(Whisper, whisper),
            cast(Silero, Silent()),
            e5,
            lambda content: np.frombuffer(content, np.float32),
            device="cpu",
            max_audio_s=30,
            decoders=1,
            max_batch_frames=2_000,
            max_batch_tokens=64,
        )
    finally:
        torch.set_num_threads(before)


def clip(seconds: int) -> Clip:
    noise = np.random.default_rng(seconds).normal(0, 0.1, seconds * SAMPLE_RATE_HZ)
    return Clip(torch.from_numpy(noise.astype(np.float32)), language="en")


def test_a_batch_holds_clips_of_one_padded_length_and_answers_are_in_order() -> None:
    whisper = Repeats()
    refused = InvalidMessage("garbage")
    # Padded to 5, 10 and 20 s: four, two and one of them are 2,000 frames.
    heard = encoder(whisper).forward([clip(2), clip(8), refused, clip(3), clip(18), clip(7), clip(9)])
    assert [item if isinstance(item, Exception) else item.words for item in heard] == [
        "2",
        "8",
        refused,
        "3",
        "18",
        "7",
        "9",
    ]
    assert sorted(whisper.batches) == [[2, 3], [8, 7], [9], [18]]


def test_what_was_heard_and_what_was_said_are_answers_beside_those_that_are_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = encoder(Repeats())
    heard = model.forward([clip(2), InvalidMessage("garbage"), clip(3)])
    monkeypatch.setattr(model, "_speech_vectors", lambda words: [np.full(3, float(word)) for word in words])
    two, absent, three = model.finish(heard)
    assert [answers[Modality.SPEECH].transcript for answers in (two, absent, three)] == ["2", "", "3"]
    assert [answer.absent_reason for answer in absent.values()] == ["garbage", "garbage"]
    for answers, seconds in ((two, 2), (three, 3)):
        assert answers[Modality.SPEECH].vector is not None
        np.testing.assert_array_equal(answers[Modality.SPEECH].vector, [seconds] * 3)
        assert answers[Modality.AUDIO].vector is not None


def test_a_full_batch_is_heard_while_the_next_clips_are_decoded() -> None:
    whisper = Repeats()
    model = encoder(whisper)

    def decoded() -> Iterator[Clip]:
        yield clip(18)
        assert whisper.heard.wait(timeout=30)  # nothing more is decoded until it was heard
        yield clip(17)

    assert len(model.forward(decoded())) == 2


def test_batches_are_computed_side_by_side() -> None:
    heard = encoder(Repeats(together=2), threads=2).forward([clip(18), clip(17)])
    assert not [item for item in heard if isinstance(item, Exception)]


def test_batches_and_their_padding_are_counted() -> None:
    def counted() -> list[float]:
        names = [f"crowdtone_batch_{part}_total" for part in ("budget", "filled", "padding")]
        return [REGISTRY.get_sample_value(name, {"service": "audio_encoder"}) or 0.0 for name in names]

    before = counted()
    encoder(Repeats()).forward([clip(2), clip(3), clip(18)])
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [4_000, 3_000, 700]
