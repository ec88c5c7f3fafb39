"""The encoders on a GPU: what it says is what the CPU says, whatever was started ahead or compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import load
from services.audio_encoder.encoder import AudioEncoder
from services.audio_encoder.settings import AudioEncoderSettings
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from services.text_encoder.encoder import TextEncoder
from shared.e5 import E5, Bert, BertConfig, Reading
from shared.encoding import Encoder, Input
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
    torch.manual_seed(0)
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


def test_sounds(tmp_path: Path) -> None:
    inputs = [Input(media=(content,), language="de") for content in load.clips(6)]
    text = TextModelSettings()
    cpu = AudioEncoder.load(ModelSettings(device="cpu"), AudioEncoderSettings(), text)
    gpu = AudioEncoder.load(ModelSettings(device="cuda"), AudioEncoderSettings(), text)
    # int8 on the CPU, float16 on the GPU.
    assert least_cosine(cpu, gpu, inputs, Modality.AUDIO) > 0.98
