"""`python -m services.api`: the gRPC API over what fusion wrote."""

from __future__ import annotations

import logging
import os
import time
from functools import partial

from services.api.live import Live
from services.api.queries import Queries, ping
from services.api.recent import Recent
from services.api.server import Readiness, build
from services.api.servicer import Servicer
from services.api.settings import ApiSettings, is_loopback
from shared import db, heartbeat, kafka, metrics, topics, worker
from shared.heartbeat import Heartbeat
from shared.media import MediaStore
from shared.settings import KafkaSettings, MediaSettings, PostgresSettings, RedisSettings, WorkerSettings

log = logging.getLogger(__name__)


def main() -> None:
    # Sockets are read by the thread that serves, not by one of the C core's own that would hand every message
    # over: 340 us of CPU an empty call instead of 420 (grpcio 1.85).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    settings, worker_settings = ApiSettings(), WorkerSettings()
    kafka_settings, redis = KafkaSettings(), heartbeat.connect(RedisSettings())

    def body() -> None:
        stopped = worker.on_sigterm()
        metrics.serve(worker_settings.metrics_port)
        connect = partial(
            db.engine, PostgresSettings(), autocommit=True, statement_timeout_s=settings.query_timeout_s
        )
        engine = connect(pool_size=2 * settings.threads)  # as many again for the streams' looks
        queries = Queries(engine, settings.max_points, settings.max_page_bytes)
        live = Live(
            partial(kafka.Tail, kafka_settings, topics.SENTIMENTS.name), max_streams=settings.max_streams
        )
        readiness = Readiness(
            # A connection of its own: a server whose threads are all busy is busy, not away.
            partial(ping, connect(pool_size=1)),
            interval_s=settings.ready_interval_s,
            timeout_s=settings.ready_timeout_s,
        )
        servicer = Servicer(
            queries=queries,
            recent=Recent(
                max_age_s=settings.trend_max_age_ms / 1000, max_size=settings.trend_kept_bytes, size=len
            ),
            live=live,
            media=MediaStore(MediaSettings()),
            reports=partial(heartbeat.reports, redis),
            stream_interval_s=settings.stream_interval_s,
            stream_refresh_s=settings.stream_refresh_s,
        )
        server, port = build(settings, servicer, readiness)
        live.start()
        readiness.start()
        server.start()
        log.info("serving at %s:%d", settings.address.rpartition(":")[0], port)
        if not is_loopback(settings.address) and (
            settings.tls_cert_file is None or not settings.token_hashes
        ):
            log.warning("anyone who reaches this address may read and change topics: set a token and TLS")
        beat = Heartbeat(redis, "api", interval_s=worker_settings.heartbeat_s, now=time.time())
        while not stopped() and live.alive():
            if beat.due(time.time()):
                beat.beat(now=time.time(), posts=0, dead_letters=0, lag_records=0)
            time.sleep(0.1)
        readiness.stop()
        drained = server.stop(settings.drain_s)
        clean = live.alive()
        live.stop()
        drained.wait()
        engine.dispose()
        if not clean:
            raise RuntimeError("the reader of `sentiments` died; see above")

    worker.main("api", body, log_level=worker_settings.log_level)


if __name__ == "__main__":
    main()
