"""`python -m benchmarks encode|join|backlog|compare`: what the services cost, and how fusion models compare.

`encode` and `join` take no broker and no database: what one process does between reading and writing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import load
from benchmarks.backlog import Service, backlog
from benchmarks.compare import compare
from services.fusion.fusion import Fusion
from services.fusion.join import Join
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.testing import MemoryStore
from services.text_encoder.encoder import TextEncoder
from shared import topics
from shared.canary import Canary
from shared.e5 import E5, token_batches
from shared.encoding import encode_step
from shared.media import MediaStore
from shared.messages import TopicPartition
from shared.settings import MediaSettings, ModelSettings, TextModelSettings

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command()(compare)

Posts = Annotated[int, typer.Option(help="Posts in the load.", min=100)]
Rounds = Annotated[int, typer.Option(help="Rounds, taken in turn; medians are shown.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="One object instead of a table.")]


@app.command()
def encode(posts: Posts = 2000, rounds: Rounds = 3, as_json: AsJson = False) -> None:
    """The text encoder's step, from record bytes to embedding bytes, over the bare model loop."""
    text = TextModelSettings()
    encoder = TextEncoder.load(ModelSettings(), text)
    step = encode_step("text_encoder", encoder, MediaStore(MediaSettings()), canary=Canary(encoder))
    records = load.post_records(posts)
    e5 = E5.load(cache_dir=ModelSettings().cache_dir, max_tokens=text.max_tokens)
    rows = e5.tokenize([post.text for post in load.posts(posts)])
    batches = [
        e5.pad([rows[i] for i in batch]) for batch in token_batches([*map(len, rows)], text.max_batch_tokens)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                e5(ids, mask).cpu()

    def service() -> None:
        for start in range(0, posts, 500):
            step(records[start : start + 500], 0.0)

    bare_s, service_s = _in_turn(rounds, bare, service)
    tokens = sum(map(len, rows))
    _show(
        "encode",
        {
            "device": str(e5.device),
            "threads": torch.get_num_threads(),
            "posts": posts,
            "tokens_per_post": round(tokens / posts, 1),
            "padding_share": round(1 - tokens / sum(ids.numel() for ids, _ in batches), 3),
            "posts_per_s": round(posts / service_s, 1),
            "bare_loop_posts_per_s": round(posts / bare_s, 1),
            "ratio_to_bare_loop": round(bare_s / service_s, 3),
        },
        as_json,
    )


@app.command()
def join(posts: Posts = 20_000, rounds: Rounds = 3, as_json: AsJson = False) -> None:
    """Fusion's step, from record bytes through join and classifier to verdicts, the store in memory."""
    model = FusionModel.load(SHIPPED_WEIGHTS, "auto")
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

    (service_s,) = _in_turn(rounds, service)
    _show(
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


@app.command("backlog")
def backlog_command(
    service: Annotated[Service, typer.Option(help="Which one works it off.")] = Service.fusion,
    posts: Annotated[int, typer.Option(help="Posts that wait before it starts.", min=1)] = 100_000,
    limit_s: Annotated[
        float, typer.Option(help="Watch for so long at most; what is left then is told.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Fill a topic, start one process of a service, and watch its memory until it has drained it."""
    _show("backlog", backlog(service, posts, limit_s), as_json)


def _in_turn(rounds: int, *works: Callable[[], None]) -> list[float]:
    """Median seconds of each work, after one round that is not counted; in turn, so that drift hits all."""
    seconds: list[list[float]] = [[] for _ in works]
    for counted in range(rounds + 1):
        for work, taken in zip(works, seconds, strict=True):
            began = time.perf_counter()
            work()
            if counted:
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def _show(title: str, figures: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    app()
