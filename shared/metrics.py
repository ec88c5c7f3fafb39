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
CACHED = Counter(
    "crowdtone_embeddings_cached_total", "Posts answered from the cache, or by a turn under way.", ["service"]
)
BATCH_BUDGET = Counter(
    "crowdtone_batch_budget_total",
    "What the batches of a model could hold: tokens, pictures or frames of 10 ms.",
    ["service"],
)
BATCH_FILLED = Counter("crowdtone_batch_filled_total", "What they held of it, padding counted.", ["service"])
BATCH_PADDING = Counter(
    "crowdtone_batch_padding_total", "How much of what they held was padding.", ["service"]
)
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


def batched(service: str, *, budget: int, filled: int, padding: int) -> None:
    """Count batches that a model is given, in the unit of its budget."""
    BATCH_BUDGET.labels(service).inc(budget)
    BATCH_FILLED.labels(service).inc(filled)
    BATCH_PADDING.labels(service).inc(padding)


def serve(port: int) -> None:
    """Export on loopback at `port`; 0 exports nothing."""
    if port:
        start_http_server(port, addr="127.0.0.1")
