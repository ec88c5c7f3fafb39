"""`crowdtone bench join`: fusion's step, from record bytes through join and classifier to verdicts."""

from __future__ import annotations

import torch

from benchmarks import load
from benchmarks.figures import AsJson, Device, OnDevice, Posts, Rounds, in_turn, show
from services.fusion.fusion import Fusion
from services.fusion.join import Join
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.testing import MemoryStore
from shared import topics
from shared.messages import TopicPartition


def join(
    posts: Posts = 20_000, rounds: Rounds = 3, device: OnDevice = Device.auto, as_json: AsJson = False
) -> None:
    """Fusion's step, from record bytes through join and classifier to verdicts, the store in memory."""
    model = FusionModel.load(SHIPPED_WEIGHTS, device)
    records = load.embedding_records(posts, dict(model.dimensions), dict(model.encoders))
    embeddings = sum(len(post.expected) for post in load.posts(posts))

    def service() -> None:
        fusion = Fusion(Join(grace_s=30, late_s=60, max_open_posts=200_000), model, MemoryStore())
        fusion.rebalanced(frozenset(), frozenset({TopicPartition(topics.EMBEDDINGS.name, 0)}))
        verdicts = 0
        for start in range(0, len(records), 8):
            verdicts += fusion.step(records[start : start + 8], 0.0).posts
        if verdicts != posts:
            raise AssertionError(f"{verdicts} verdicts of {posts} posts")

    (service_s,) = in_turn(rounds, service)
    show(
        "join",
        {
            "threads": torch.get_num_threads(),
            "posts": posts,
            "embeddings": embeddings,
            "embeddings_per_s": round(embeddings / service_s),
            "posts_per_s": round(posts / service_s),
        },
        as_json,
    )
