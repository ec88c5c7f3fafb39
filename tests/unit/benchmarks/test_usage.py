"""What an encoder counts of its batches is what the benchmarks tell of them."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client import generate_latest

from benchmarks.usage import batches, shares
from shared import metrics


def test_fill_and_padding_are_told_from_the_text_of_metrics() -> None:
    before = batches(generate_latest().decode())
    metrics.batched("bench", budget=1_000, filled=800, padding=200)
    metrics.batched("bench", budget=1_000, filled=200, padding=50)
    counted = batches(generate_latest().decode()) - before
    assert shares(counted) == {"batch_fill": pytest.approx(0.5), "padding_share": pytest.approx(0.25)}


def test_without_a_batch_nothing_is_told() -> None:
    assert shares(Counter()) == {"batch_fill": None, "padding_share": None}
