"""The fusion service: settings -> objects -> serve."""

from __future__ import annotations

from functools import partial

from services.fusion.canary import Canary, watched
from services.fusion.fusion import SERVICE, Fusion
from services.fusion.join import Join
from services.fusion.model import FusionModel
from services.fusion.settings import FusionSettings
from services.fusion.store import PostgresStore
from shared import db, topics, worker
from shared.service import serve
from shared.settings import KafkaSettings, PostgresSettings, WorkerSettings


def run() -> None:
    stopped = worker.on_sigterm()
    settings, postgres = FusionSettings(), PostgresSettings()
    # The network is small: threads that share its products wait for one another longer than they compute.
    model = FusionModel.load(settings.model, settings.device, threads=1)
    fusion = Fusion(
        Join(
            grace_s=settings.grace_s,
            late_s=settings.late_s,
            max_open_posts=settings.max_open_posts,
            max_open_bytes=settings.max_open_bytes,
        ),
        model,
        # Systems that share a Postgres as they share a cluster: the prefix tells their ledgers apart.
        PostgresStore(
            db.engine(postgres),
            group=f"{KafkaSettings().topic_prefix}{SERVICE}",
            retry_s=postgres.retry_s,
        ),
    )
    serve(
        SERVICE,
        topics.EMBEDDINGS,
        watched(fusion.step, Canary(model)),
        stopped=stopped,
        max_poll_records=settings.max_poll_records,
        rebalanced=fusion.rebalanced,
        checks={
            "postgres": partial(db.check_answers, db.engine(postgres, pool_size=1, statement_timeout_s=3))
        },
    )


if __name__ == "__main__":
    worker.main(SERVICE, run, log_level=WorkerSettings().log_level)
