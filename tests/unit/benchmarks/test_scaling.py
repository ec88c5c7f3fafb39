"""What a rate takes, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import Figures, mean_wait_s, plan, servers_for

ROUND = Figures(
    texts_per_s=500,
    bare_images_per_s=500,
    bare_clips_per_s=100,
    kept=0.5,
    image_share=0.4,
    audio_share=0.1,
    read_per_s=400,
    produced_per_s=10_000,
    joined_per_s=800,
    stored_per_s=2_000,
    post_bytes=200,
    embedding_bytes=1_000,
    stored_bytes=1_000,
    trend_row_bytes=250,
    topics=10,
    cells=4,
    gpu_usd_per_h=3.6,
    busy=0.5,
)


def test_a_plan_is_the_arithmetic_of_its_figures() -> None:
    made = plan(1_000, ROUND)
    # Of 500 texts/s a GPU half busy takes 250; of 250 pictures 125; of 50 clips 25.
    assert (made.text_gpus, made.image_gpus, made.audio_gpus) == (4, 4, 4)
    assert made.text_processes == 5  # 200 each; a GPU has one at least
    assert (made.ingest_processes, made.postgres_shards) == (1, 1)
    assert made.fusion_processes == 4  # 1,600 answers/s, 400 each
    assert made.partitions == 10
    assert made.kafka_mb_per_s == pytest.approx(1.8)
    assert made.posts_gb_per_day == pytest.approx(86.4)
    # Every cell of every topic, and of all posts, in each of 1,440 minutes, 24 hours and the day.
    assert made.trend_rows_per_day == 11 * 4 * (1_440 + 24 + 1)
    assert made.usd_per_million_posts == pytest.approx(12)
    assert made.first_limit == "text_process"


def test_the_wait_is_erlangs() -> None:
    assert mean_wait_s(0.7, 1, 1) == pytest.approx(0.7 / 0.3)
    assert mean_wait_s(1, 1, 2) == pytest.approx(1 / 3)  # waits with probability 1/3, then for 1 s on average
    with pytest.raises(ValueError, match="cannot carry"):
        mean_wait_s(2, 1, 2)


@given(st.floats(1, 1e6), st.floats(1, 10))
def test_more_posts_never_take_less(posts_per_s: float, times: float) -> None:
    less, more = plan(posts_per_s, Figures()), plan(posts_per_s * times, Figures())
    for name in (
        "text_gpus",
        "image_gpus",
        "audio_gpus",
        "fusion_processes",
        "partitions",
        "postgres_shards",
    ):
        assert getattr(less, name) <= getattr(more, name)
    assert less.trends_gb_per_day <= more.trends_gb_per_day


@given(st.floats(1, 1e6), st.floats(1, 1e5), st.floats(0.1, 0.95))
def test_no_server_is_busier_than_it_may_be_and_none_is_idle(load: float, each: float, busy: float) -> None:
    servers = servers_for(load, each, busy)
    assert load / each / servers <= busy * (1 + 1e-6)
    assert servers == 1 or load / each / (servers - 1) > busy * (1 - 1e-6)


def test_the_price_is_the_only_assumption_about_money() -> None:
    cheap, dear = (plan(100_000, replace(Figures(), gpu_usd_per_h=price)) for price in (1, 4))
    assert dear.usd_per_million_posts == pytest.approx(4 * cheap.usd_per_million_posts)
