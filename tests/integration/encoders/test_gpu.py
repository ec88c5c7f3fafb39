"""The encoders on a GPU: what it says is what the CPU says, whatever was started ahead or compiled."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import ne

import numpy as np
import pytest
import torch

from benchmarks import load
from services.audio_encoder import sounds
from services.audio_encoder.encoder import AudioEncoder
from services.audio_encoder.settings import AudioEncoderSettings
from services.audio_encoder.silero import Silero
from services.audio_encoder.whisper import Whisper
from services.image_encoder import on_device
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from services.text_encoder.encoder import TextEncoder
from shared.e5 import E5, Bert, BertConfig, Reading
from shared.encoding import NO_SPEECH, Encoder, Input
from shared.messages import Modality
from shared.settings import ModelSettings, TextModelSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LEAST_COSINE = 0.999


def least_cosine(one: Encoder, other: Encoder, inputs: list[Input], slot: Modality) -> float:
    cosines = []
    for here, there in zip(one.encode(inputs), other.encode(inputs), strict=True):
        a, b = here[slot].vector, there[slot].vector
        assert a is not None, here[slot].absent_reason
        assert b is not None, there[slot].absent_reason
        a, b = a.astype(np.float64), b.astype(np.float64)
        cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return min(cosines)


def test_texts_of_any_lengths_are_one_batch() -> None:
    """Random weights: it needs no model but the shape of one."""
    config = BertConfig(
        vocab_size=1_000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        type_vocab_size=1,
    )

    def random() -> E5:
        torch.manual_seed(0)
        return E5(
            Bert(config, torch.randn(1_000, 64)),
            lambda texts: [[1] for _ in texts],
            dimension=64,
            pad_id=0,
            prefix="",
            max_tokens=128,
            model_version="random@0",
        ).eval()

    rng = np.random.default_rng(0)
    readings = [
        Reading(rng.integers(1, 1_000, length).tolist(), np.zeros(0, np.float32))
        for length in [1, 128, 7, 7, *rng.integers(1, 128, 300)]
    ]
    cpu, gpu = random(), random().to("cuda", torch.float16)
    assert gpu.packs
    assert gpu.taken([len(reading.ids) for reading in readings]) == sum(len(one.ids) for one in readings)
    expected, found = cpu.vectors(readings), gpu.vectors(readings)
    assert (expected * found).sum(1).min() > LEAST_COSINE
    alone = np.concatenate([gpu.vectors([reading]) for reading in readings[:5]])
    assert (alone * found[:5]).sum(1).min() > LEAST_COSINE
    np.testing.assert_array_equal(found, gpu.vectors(readings))


@pytest.mark.parametrize("compiled", [False, True])
def test_texts(compiled: bool) -> None:
    inputs = [Input(post.text) for post in load.posts(300)] + [Input("short"), Input("long " * 500)]
    cpu = TextEncoder.load(ModelSettings(device="cpu"), TextModelSettings(precision="float32"))
    gpu = TextEncoder.load(
        ModelSettings(device="cuda", compile=compiled), TextModelSettings(max_batch_tokens=2_048)
    )
    assert least_cosine(cpu, gpu, inputs, Modality.TEXT) > LEAST_COSINE


def test_one_text_that_cannot_be_encoded_costs_nobody_else() -> None:
    gpu = TextEncoder.load(ModelSettings(device="cuda"), TextModelSettings())
    answers = gpu.encode([Input("good"), Input(""), Input("fine")])
    assert [answer[Modality.TEXT].vector is None for answer in answers] == [False, True, False]


@pytest.mark.parametrize("decode_on_device", [False, True])
def test_pictures(decode_on_device: bool) -> None:
    inputs = [Input(media=(content,)) for content in load.pictures(12)]
    cpu = ImageEncoder.load(ModelSettings(device="cpu"), ImageEncoderSettings())
    gpu = ImageEncoder.load(
        ModelSettings(device="cuda"), ImageEncoderSettings(decode_on_device=decode_on_device)
    )
    # Other decoders and another filter, so pixels differ a little more than numbers do.
    assert least_cosine(cpu, gpu, inputs, Modality.IMAGE) > (0.97 if decode_on_device else LEAST_COSINE)


def test_pictures_decoded_in_memory_that_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group after group, by two turns at once, each has the pixels that it has alone."""

    def decoded(contents: list[bytes]) -> list[torch.Tensor]:
        found = on_device.decode(contents, 224, 10**8, "cuda")
        return [picture for picture in found if picture is not None]

    pictures = list(load.pictures(12))
    alone = torch.stack([decoded([content])[0] for content in pictures]).cpu()
    monkeypatch.setattr(on_device, "PIXELS_AT_ONCE", 3_000_000)
    busy = torch.randn(4_096, 4_096, device="cuda")

    def turn(_: int) -> torch.Tensor:
        found = torch.stack(decoded(pictures * 6))
        for _ in range(20):
            busy @ busy  # what takes memory, and leaves it with work still to do
        return found.cpu()

    with ThreadPoolExecutor(2) as turns:
        for found in turns.map(turn, range(10)):
            # One picture and many may be decoded by different parts of the GPU.
            apart = (found.float() - alone.float().repeat(6, 1, 1, 1)).abs().mean((1, 2, 3))
            assert float(apart.max()) < 1


def in_float32(text: TextModelSettings) -> AudioEncoder:
    """The audio encoder on the CPU, computed by torch: whoever has a GPU may have no CTranslate2."""
    cache_dir = ModelSettings().cache_dir
    return AudioEncoder(
        Whisper.load(cache_dir, device="cpu", dtype=torch.float32),
        Silero.load("cpu"),
        E5.load(text.model, cache_dir=cache_dir, max_tokens=text.max_tokens, adapter=text.adapter),
        partial(sounds.decode, max_s=30.0),
        device="cpu",
        max_audio_s=30.0,
        decoders=1,
        max_batch_frames=2_000,
        max_batch_tokens=384,
    )


def words(encoder: AudioEncoder, inputs: list[Input]) -> list[str]:
    return [answers[Modality.SPEECH].transcript for answers in encoder.encode(inputs)]


def test_sounds() -> None:
    """In float16 on the GPU as in float32 on the CPU, by another implementation: the same words of the demo's
    voices, none in noise, and whatever the batch."""
    voices = [path.read_bytes() for path in sorted(load.VOICES.glob("*.opus"))]
    inputs = [Input(media=(content,), language="de") for content in [*voices, *load.clips(6)]]
    text = TextModelSettings()
    gpu = AudioEncoder.load(ModelSettings(device="cuda"), AudioEncoderSettings(), text)
    small = AudioEncoder.load(
        ModelSettings(device="cuda"), AudioEncoderSettings(max_batch_frames=1, decoders=1), text
    )
    recorded = AudioEncoder.load(ModelSettings(device="cuda"), AudioEncoderSettings(cuda_graphs=True), text)
    cpu = in_float32(text)
    assert least_cosine(cpu, gpu, inputs, Modality.AUDIO) > LEAST_COSINE
    assert least_cosine(small, gpu, inputs, Modality.AUDIO) > LEAST_COSINE
    here, there, alone = (words(encoder, inputs) for encoder in (cpu, gpu, small))
    # A token may be as likely as another, but for the last place of a float16.
    assert sum(map(ne, here, there)) <= len(inputs) // 20, [*zip(here, there, strict=True)]
    assert sum(map(ne, alone, there)) <= len(inputs) // 20, [*zip(alone, there, strict=True)]
    replayed = words(recorded, inputs)
    assert sum(map(ne, replayed, there)) <= len(inputs) // 20, [*zip(replayed, there, strict=True)]
    assert words(recorded, inputs) == replayed
    hiss = np.random.default_rng(0).normal(0, 3_000, 32_000).astype("<i2")
    (answer,) = gpu.encode([Input(media=(load.wav(hiss),))])
    assert answer[Modality.SPEECH].absent_reason == NO_SPEECH
    assert not {"ctranslate2", "onnxruntime", "faster_whisper"} & sys.modules.keys()
