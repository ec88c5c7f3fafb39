"""Bad texts are absent with the reason, and the posts around them are scored as if they were not there."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from services.text_encoder.encoder import TextEncoder
from shared.e5 import E5
from shared.encoding import Input
from shared.messages import Modality

POISON = 7


class Letters(torch.nn.Module):
    """Token states that are the token itself; fails where a poison token is in the batch."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if (input_ids == POISON).any():
            raise RuntimeError("poison")
        values = input_ids.float()
        return torch.stack([values, values.square(), torch.ones_like(values)], dim=2)


def tokenize(texts: list[str]) -> list[list[int]]:
    return [
        [1, *(ord(letter) for letter in text.split()[0] if text.split())][:16] if text.strip() else [1]
        for text in texts
    ]


@pytest.fixture
def encoder() -> TextEncoder:
    network = Letters()
    network.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    e5 = E5(network, tokenize, dimension=3, pad_id=0, prefix="", max_tokens=16, model_version="letters@1")
    return TextEncoder(e5.eval(), max_batch_tokens=64)


def test_bad_texts_are_absent_and_their_neighbours_are_scored(encoder: TextEncoder) -> None:
    texts = ["good", "", "  \n\t", "x" * 1_000_000, "bad" + chr(POISON), "fine", "\ud800"]
    answers = [result[Modality.TEXT] for result in encoder.encode([Input(text) for text in texts])]
    assert [answer.absent_reason for answer in answers] == [
        "",
        "empty text",
        "empty text",
        "",
        "the model failed on it: RuntimeError",
        "",
        "",
    ]
    alone = encoder.encode([Input("good")])[0][Modality.TEXT].vector
    assert alone is not None
    assert answers[0].vector is not None
    assert alone.dtype == np.float16
    np.testing.assert_array_equal(answers[0].vector, alone)


def test_no_posts_no_answers(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []


def test_batches_and_their_padding_are_counted(encoder: TextEncoder) -> None:
    def counted() -> list[float]:
        names = [f"crowdtone_batch_{part}_total" for part in ("budget", "filled", "padding")]
        return [REGISTRY.get_sample_value(name, {"service": "text_encoder"}) or 0.0 for name in names]

    before = counted()
    encoder.encode([Input("good"), Input(""), Input("yes")])  # 5 and 4 tokens in one batch of up to 64
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [64, 10, 1]


def test_batches_are_computed_side_by_side_by_threads_of_the_model() -> None:
    both = threading.Barrier(2)

    class Meeting(Letters):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            both.wait(timeout=30)  # one batch alone would wait in vain
            return super().forward(input_ids, attention_mask)

    network = Meeting()
    network.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    e5 = E5(network, tokenize, dimension=3, pad_id=0, prefix="", max_tokens=16, model_version="letters@1")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder = TextEncoder(e5.eval(), max_batch_tokens=5)
    finally:
        torch.set_num_threads(before)
    answers = encoder.encode([Input("good"), Input("fine")])
    assert [answer[Modality.TEXT].absent_reason for answer in answers] == ["", ""]
