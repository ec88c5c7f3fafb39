"""A broken picture costs itself: its post keeps the others, and its neighbours keep their vectors."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from services.image_encoder.efficientnet import EfficientNetLite0
from services.image_encoder.encoder import ImageEncoder, ImageModel, Pixels
from services.image_encoder.pictures import decoder
from shared.encoding import Input
from shared.errors import InvalidMessage
from shared.messages import Modality


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def mean_colour(pixels: torch.Tensor) -> torch.Tensor:
    if (pixels[:, 1] > 250).logical_and(pixels[:, 0] < 5).any():
        raise RuntimeError("lime is poison")
    return pixels.mean((2, 3))


@pytest.fixture
def encoder() -> ImageEncoder:
    model = ImageModel(mean_colour, "colours@1", 3, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return ImageEncoder(model, decoder(8, 10_000), device="cpu", max_batch_pixels=3 * 64, decoders=2)


def test_bad_pictures_are_absent_and_their_neighbours_are_scored(encoder: ImageEncoder) -> None:
    posts = [
        (png("red"),),
        (b"garbage",),
        (png("blue"), b"", png("red")),
        (png("lime"),),
        (),
        (png("black"),),
    ]
    answers = [result[Modality.IMAGE] for result in encoder.encode([Input(media=media) for media in posts])]
    assert [answer.absent_reason for answer in answers] == [
        "",
        "not a JPEG, PNG, WebP or GIF picture",
        "",
        "the model failed on it: RuntimeError",
        "no picture in the post",
        "",
    ]
    vectors = [None if answer.vector is None else answer.vector.tolist() for answer in answers]
    assert vectors == [[255, 0, 0], None, [127.5, 0, 127.5], None, None, [0, 0, 0]]


def test_the_model_has_its_first_batch_while_later_pictures_are_decoded() -> None:
    first_batch = threading.Event()

    def network(pixels: torch.Tensor) -> torch.Tensor:
        first_batch.set()
        return mean_colour(pixels)

    def decode(content: bytes) -> Pixels:
        if content == b"later" and not first_batch.wait(60):
            raise InvalidMessage("the model waits for us")
        return np.zeros((8, 8, 3), np.uint8)

    model = ImageModel(network, "colours@1", 3, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    encoder = ImageEncoder(model, decode, device="cpu", max_batch_pixels=2 * 64, decoders=1)
    answers = encoder.encode(
        [Input(media=(content,)) for content in (b"", b"", b"later", b"later", b"later")]
    )
    assert [answer[Modality.IMAGE].absent_reason for answer in answers] == [""] * 5


def test_batches_are_computed_side_by_side() -> None:
    both = threading.Barrier(2)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        both.wait(timeout=30)  # one batch alone would wait in vain
        return mean_colour(pixels)

    model = ImageModel(network, "colours@1", 3, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder = ImageEncoder(model, decoder(8, 10_000), device="cpu", max_batch_pixels=64, decoders=1)
    finally:
        torch.set_num_threads(before)
    answers = encoder.encode([Input(media=(png("red"),)), Input(media=(png("blue"),))])
    assert [answer[Modality.IMAGE].absent_reason for answer in answers] == ["", ""]


def test_a_batch_equals_its_rows_one_by_one() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        together = network(pixels).numpy()
        alone = torch.cat([network(row[None]) for row in pixels]).numpy()
    assert together.shape == (3, 1280)
    np.testing.assert_allclose(together, alone, atol=1e-4)
