"""Other models in the default ones' place: tiny ones of Hugging Face's own classes, saved as a hub would."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.audio_encoder.encoder import AudioEncoder
from services.audio_encoder.settings import AudioEncoderSettings
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from shared.encoding import Input
from shared.messages import Modality
from shared.settings import ModelSettings, TextModelSettings

CPU = ModelSettings(device="cpu", threads=1)
VOICE = Path(__file__).parents[3] / "demo" / "media" / "voices"


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("tiny-vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("tiny-wav2vec2")
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(320, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def test_a_vision_model_takes_the_place_of_the_default(vision: Path) -> None:
    encoder = ImageEncoder.load(CPU, ImageEncoderSettings(model=str(vision)))
    assert encoder.model_version.startswith(f"{vision.name}@")
    assert encoder.dimensions == {Modality.IMAGE: 16}
    red, blue, broken = encoder.encode(
        [Input(media=(picture("red"),)), Input(media=(picture("blue"),)), Input(media=(b"no picture",))]
    )
    first, second = red[Modality.IMAGE].vector, blue[Modality.IMAGE].vector
    assert first is not None
    assert second is not None
    assert not np.allclose(first, second, atol=1e-3)
    assert broken[Modality.IMAGE].absent_reason


def test_a_voice_model_takes_the_place_of_the_default(voice: Path) -> None:
    encoder = AudioEncoder.load(CPU, AudioEncoderSettings(model=str(voice)), TextModelSettings())
    assert encoder.model_version.startswith(f"{voice.name}@")
    clip = next(VOICE.iterdir()).read_bytes()
    (answers,) = encoder.encode([Input(media=(clip,))])
    vector = answers[Modality.AUDIO].vector
    assert vector is not None
    assert vector.shape == (encoder.dimensions[Modality.AUDIO],)
    assert answers[Modality.SPEECH].transcript
