"""Every metric a service exports: name, unit, labels. Nothing is measured under another name."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

POSTS = Counter("crowdtone_posts_total", "Posts handled.", ["service"])
DEAD_LETTERS = Counter("crowdtone_dead_letters_total", "Records sent to a dead-letter topic.", ["service"])
INGEST_LINES = Counter("crowdtone_ingest_lines_total", "Lines of feeds, by what became of them.", ["outcome"])
INGEST_FETCHES = Counter(
    "crowdtone_ingest_fetches_total", "Addresses of media, by whether they were fetched.", ["outcome"]
)
ABSENT = Counter("crowdtone_absent_total", "Declared modalities that could not be encoded.", ["service"])
CACHED = Counter("crowdtone_embeddings_cached_total", "Posts answered from the cache.", ["service"])
STEP_SECONDS = Histogram(
    "crowdtone_step_seconds",
    "One turn of the loop: from the records read to their offsets committed.",
    ["service"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
LAG = Gauge(
    "crowdtone_lag_records",
    "Records between the position and the end of the assigned partitions.",
    ["service"],
)
OPEN_POSTS = Gauge("crowdtone_join_open_posts", "Posts that wait for a modality.", ["service"])
VERDICTS = Counter("crowdtone_verdicts_total", "Verdicts written, by label.", ["label"])
ALERTS = Counter("crowdtone_alerts_total", "Revisions of alerts published.", ["kind", "state"])
API_SECONDS = Histogram(
    "crowdtone_api_seconds",
    "One call of the API, by method and gRPC status; a stream's length until it ended.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
API_STREAMS = Gauge("crowdtone_api_streams", "Live streams being served.")


def serve(port: int) -> None:
    """Export on loopback at `port`; 0 exports nothing."""
    if port:
        start_http_server(port, addr="127.0.0.1")
