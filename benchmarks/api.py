"""`crowdtone bench api`: trend queries over 90 days of posts, a real Postgres and the API's process.

What is filled are the trends alone, which is all that a trend query reads: there is no row in `posts`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import grpc
import grpc.aio
import numpy as np
import psutil
import sqlalchemy as sa
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import load
from benchmarks.figures import AsJson, Posts, cpu_s, percentiles, show
from benchmarks.system import ROOT, Servers, servers
from deploy.local import stack
from deploy.local.state import choose_ports
from protos.crowdtone.v1 import api_pb2 as pb
from shared import db
from shared.tables import ALL_POSTS, Grain, topics, trend_totals

CLIENTS: Final = 50
METHOD: Final = "/crowdtone.v1.CrowdtoneService/QueryTrends"
DAYS: Final = 90
TOPICS: Final = [f"topic-{number}" for number in range(1, 51)]
TRACKED_SHARE: Final = 0.5
"""Of the posts, so many match a topic, each one of them; every post counts for "*"."""
PLATFORMS: Final = ["bluesky", "mastodon", "reddit", "x", "youtube"]
LANGUAGES: Final = ["en", "es", "de", "pt", "ja", "fr", "it", "und"]
END: Final = load.START + timedelta(days=DAYS)


Draw = Callable[[np.random.Generator], bytes]
"""One serialized QueryTrendsRequest after another."""


def api(
    posts: Posts = 10_000_000,
    seconds: Annotated[float, typer.Option(help="How long 50 clients ask, each time.", min=1)] = 10,
    looks: Annotated[int, typer.Option(help="Queries of each kind, one after the other.", min=100)] = 500,
    keep: Annotated[
        Path | None,
        typer.Option(help="A folder for the servers and what they were filled with: the next run finds it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Latency of trend queries over 90 days of posts, and requests/s of one API process on one core."""
    with servers(stack.POSTGRES, stack.REDIS, keep=keep) as on:
        figures = _run(on, posts, seconds, looks)
    show("api", figures, as_json)


def _run(on: Servers, posts: int, seconds: float, looks: int) -> dict[str, object]:
    engine = db.engine(on.postgres)
    began = time.monotonic()
    if _counted(engine) != posts:
        fill(engine, posts)
    filled = _sizes(engine)
    if _counted(engine) != posts:
        raise AssertionError(f"the trends count {_counted(engine)} posts of {posts}")
    engine.dispose()
    figures: dict[str, object] = {"posts": posts, **filled, "fill_s": round(time.monotonic() - began, 1)}
    return figures | measure(on.environment, on.pid("postgres"), seconds, looks)


def measure(
    environment: Mapping[str, str], postgres_pid: int, seconds: float, looks: int
) -> dict[str, object]:
    """Start the API over a filled database, on one of our cores; Postgres and the clients have the others.

    First without the reuse of answers, then as it is shipped.
    """
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[:1], cores[1:] or cores
    psutil.Process(postgres_pid).cpu_affinity(others)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, others)
    try:
        with served({**environment, "CROWDTONE_API_TREND_MAX_AGE_MS": "0"}, own) as (address, process):
            figures = _one_by_one(address, looks)
            figures |= _at_once("without_reuse", address, process, seconds, boards)
        with served(environment, own) as (address, process):
            figures |= _at_once("", address, process, seconds, boards)
            figures |= _at_once("all_different", address, process, seconds, different)
            if shutil.which("h2load"):
                figures |= _h2load(address, process, max(1, round(seconds)))
    finally:
        os.sched_setaffinity(0, before)
    return {"clients": CLIENTS, "api_cores": len(own), "other_cores": len(others), **figures}


@contextmanager
def served(environment: Mapping[str, str], cores: list[int]) -> Iterator[tuple[str, psutil.Process]]:
    """The API as it is run, on these cores: its address, and its process."""
    (port,) = choose_ports((), 1)
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.api"],
            env={**environment, "CROWDTONE_API_ADDRESS": address},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            psutil.Process(process.pid).cpu_affinity(cores)
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=600)
                probe = health_pb2_grpc.HealthStub(channel)
                while (
                    probe.Check(health_pb2.HealthCheckRequest()).status
                    != health_pb2.HealthCheckResponse.SERVING
                ):
                    time.sleep(0.05)
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            log.seek(0)
            if code:
                raise RuntimeError(f"the API ended with {code}: {log.read().decode()[-2000:]}")


def request(topic: str, grain: Grain, start: datetime, end: datetime | None = None) -> bytes:
    message = pb.QueryTrendsRequest(filter=pb.TrendFilter(topic=topic), grain=pb.Grain.ValueType(grain))
    message.filter.start_time.FromDatetime(start)
    if end is not None:
        message.filter.end_time.FromDatetime(end)
    return message.SerializeToString()


def _topic(rng: np.random.Generator) -> str:
    """As people ask: all posts most of all, then by Zipf's law."""
    return (ALL_POSTS, *TOPICS)[int((len(TOPICS) + 2) ** rng.random()) - 1]


def boards(rng: np.random.Generator) -> bytes:
    """What open dashboards ask: minutes, hours or days of 51 topics up to now; 153 different requests."""
    grain, span = (
        (Grain.MINUTE, timedelta(hours=1)),
        (Grain.HOUR, timedelta(days=2)),
        (Grain.DAY, timedelta(days=DAYS)),
    )[rng.integers(3)]
    return request(_topic(rng), grain, END - span)


def different(rng: np.random.Generator) -> bytes:
    """Two days by hours, beginning in any minute and hour: hardly ever the same twice."""
    start = load.START + timedelta(hours=int(rng.integers((DAYS - 2) * 24)))
    return request(_topic(rng), Grain.HOUR, start, start + timedelta(hours=24 + int(rng.integers(24))))


def _one_by_one(address: str, looks: int) -> dict[str, object]:
    """Latency of the two queries that have a bar, over tracked topics and over all posts."""
    rng = np.random.default_rng(0)

    def minutes(topic: str) -> bytes:
        day = load.START + timedelta(days=int(rng.integers(DAYS)))
        return request(topic, Grain.MINUTE, day, day + timedelta(days=1))

    def days(topic: str) -> bytes:
        return request(topic, Grain.DAY, load.START, END)

    figures: dict[str, object] = {}
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        for name, ask in (("minutes_of_a_day", minutes), ("days_of_90_days", days)):
            for whose, names in (("", TOPICS), ("_all_posts", [ALL_POSTS])):
                taken = []
                points = 0
                for look in range(looks):
                    wanted = ask(names[look % len(names)])
                    began = time.perf_counter()
                    answer = call(wanted, timeout=60)
                    taken.append(time.perf_counter() - began)
                    points += len(pb.QueryTrendsResponse.FromString(answer).points)
                figures |= percentiles(f"{name}{whose}", taken)
                figures[f"{name}{whose}_points"] = round(points / looks)
    return figures


def _at_once(
    name: str, address: str, process: psutil.Process, seconds: float, draw: Draw
) -> dict[str, object]:
    """CLIENTS callers, each on a connection of its own, each asking again as soon as it is answered."""
    asyncio.run(_load(address, min(2.0, seconds), draw, 1))
    cpu, own_cpu = cpu_s(process.pid), time.process_time()
    began = time.perf_counter()
    taken = asyncio.run(_load(address, seconds, draw, 2))
    wall_s = time.perf_counter() - began
    api_cpu_s = cpu_s(process.pid) - cpu
    suffix = f"_{name}" if name else ""
    return {
        f"requests_per_s{suffix}": round(len(taken) / wall_s),
        **percentiles(f"requests{suffix}", taken),
        f"api_cpu_us_per_request{suffix}": round(api_cpu_s / len(taken) * 1e6),
        f"api_core_share{suffix}": round(api_cpu_s / wall_s, 2),
        f"callers_core_share{suffix}": round((time.process_time() - own_cpu) / wall_s, 2),
    }


async def _load(address: str, seconds: float, draw: Draw, seed: int) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        # Otherwise all channels of one process share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
            await channel.channel_ready()
            while time.perf_counter() < until:
                wanted = draw(rng)
                began = time.perf_counter()
                await call(wanted, timeout=60)
                taken.append(time.perf_counter() - began)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return taken


def _h2load(address: str, process: psutil.Process, seconds: int) -> dict[str, object]:
    """CLIENTS open dashboards, each asking for its own board again and again, by nghttp2's h2load.

    Callers in Python take most of the core that they share with Postgres; these less than half of it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
            for client in range(CLIENTS):
                asked = boards(np.random.default_rng([2, client]))
                call(asked, timeout=60)  # h2load would not see a refusal: its HTTP status is 200 too
                (folder / f"{client}.request").write_bytes(struct.pack(">?I", False, len(asked)) + asked)
        for duration_s in (2, seconds):  # the first warms up
            callers = [_h2load_client(address, folder, client, duration_s) for client in range(CLIENTS)]
            cpu, own_cpu = cpu_s(process.pid), sum(os.times()[:4])
            began = time.perf_counter()
            failed = sum(caller.wait(timeout=duration_s + 60) != 0 for caller in callers)
            wall_s = time.perf_counter() - began
            if failed:
                raise RuntimeError(f"{failed} of {CLIENTS} callers ended with an error")
        api_cpu_s, callers_cpu_s = cpu_s(process.pid) - cpu, sum(os.times()[:4]) - own_cpu
        # A line a request: when it began, its HTTP status, how many microseconds it took.
        lines = [line.split() for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    if any(status != "200" for _, status, _ in lines):
        raise RuntimeError("a request was not answered")
    return {
        "requests_per_s_h2load": round(len(lines) / wall_s),
        **percentiles("requests_h2load", [int(took_us) / 1e6 for _, _, took_us in lines]),
        "api_cpu_us_per_request_h2load": round(api_cpu_s / len(lines) * 1e6),
        "api_core_share_h2load": round(api_cpu_s / wall_s, 2),
        "callers_core_share_h2load": round(callers_cpu_s / wall_s, 2),
    }


def _h2load_client(address: str, folder: Path, client: int, seconds: int) -> subprocess.Popen[bytes]:
    log = folder / f"{client}.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "--clients=1", "--max-concurrent-streams=1", f"--duration={seconds}"]
    command += [f"--data={folder / f'{client}.request'}", f"--log-file={log}"]
    command += ["--header=content-type: application/grpc", "--header=te: trailers"]
    return subprocess.Popen([*command, f"http://{address}{METHOD}"], stdout=subprocess.DEVNULL)


# One day of posts, counted as fusion counts them (each for its topic and for "*", at three grains), in the
# order of time, as they come in life: so a topic's rows lie among those of all others. floor((n + 1) ^ u) of
# a uniform u is Zipf's law over 1 .. n; the sine makes nights quieter than evenings.
_FILL: Final = sa.text(f"""
    WITH drawn AS MATERIALIZED (
        SELECT date_trunc(
                'minute', CAST(:day AS timestamptz) + interval '1 day' * (at - 0.08 * sin(6.2832 * at))
            ) AS bucket,
            (CAST(:topics AS text[]))[topic] AS topic, (CAST(:platforms AS text[]))[platform] AS platform,
            (CAST(:languages AS text[]))[language] AS language,
            CASE WHEN label < 0.30 THEN 0 WHEN label < 0.70 THEN 1 WHEN label < 0.95 THEN 2 ELSE 3 END
                AS label,
            score, tracked
        FROM (
            SELECT random() AS at, random() AS label, random() AS tracked,
                CAST(floor(({len(TOPICS) + 1}) ^ random()) AS int) AS topic,
                CAST(floor(({len(PLATFORMS) + 1}) ^ random()) AS int) AS platform,
                CAST(floor(({len(LANGUAGES) + 1}) ^ random()) AS int) AS language,
                CAST(2e6 * random() - 1e6 AS bigint) AS score
            FROM generate_series(1, :posts)
        ) AS numbers
    ), minutes AS MATERIALIZED (
        SELECT topic, bucket, platform, language, count(*) AS posts,
            count(*) FILTER (WHERE label = 0) AS negative, count(*) FILTER (WHERE label = 1) AS neutral,
            count(*) FILTER (WHERE label = 2) AS positive, count(*) FILTER (WHERE label = 3) AS unscored,
            coalesce(sum(score) FILTER (WHERE label < 3), 0) AS score_micro
        FROM (
            SELECT * FROM drawn WHERE tracked < {TRACKED_SHARE}
            UNION ALL SELECT bucket, '{ALL_POSTS}', platform, language, label, score, tracked FROM drawn
        ) AS counted
        GROUP BY topic, bucket, platform, language
    ), grains AS (
        SELECT topic, {Grain.MINUTE:d} AS grain, bucket, platform, language,
            posts, negative, neutral, positive, unscored, score_micro FROM minutes
        UNION ALL
        SELECT topic, grain, date_trunc(field, bucket, 'UTC'), platform, language,
            sum(posts), sum(negative), sum(neutral), sum(positive), sum(unscored), sum(score_micro)
        FROM minutes
            CROSS JOIN (VALUES ({Grain.HOUR:d}, 'hour'), ({Grain.DAY:d}, 'day')) AS wider (grain, field)
        GROUP BY 1, 2, 3, 4, 5
    ), totals AS (
        INSERT INTO trend_totals
        SELECT topic, grain, bucket,
            sum(posts), sum(negative), sum(neutral), sum(positive), sum(unscored), sum(score_micro)
        FROM grains GROUP BY topic, grain, bucket ORDER BY bucket
    )
    INSERT INTO trends SELECT * FROM grains ORDER BY bucket
""")


def fill(engine: sa.Engine, posts: int) -> None:
    """The trends of `posts` posts over DAYS days; without the posts themselves, which no trend query reads.

    The same rows for the same number. What an earlier fill that was broken off had left is taken out.
    """
    with engine.begin() as connection:
        # It would put a day's totals in the order of topics, which reads faster than life.
        connection.execute(sa.text("ALTER TABLE trends DISABLE TRIGGER USER"))
        connection.execute(sa.text("TRUNCATE trends, trend_totals, topics"))
        connection.execute(
            topics.insert(), [{"name": name, "display_name": name, "keywords": [name]} for name in TOPICS]
        )
    for number in range(DAYS):
        with engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL work_mem = '128MB'"))
            connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            connection.execute(sa.text("SELECT setseed(:seed)"), {"seed": number / DAYS})
            connection.execute(
                _FILL,
                {
                    "day": load.START + timedelta(days=number),
                    "posts": posts // DAYS + (number < posts % DAYS),
                    "topics": TOPICS,
                    "platforms": PLATFORMS,
                    "languages": LANGUAGES,
                },
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ALTER TABLE trends ENABLE TRIGGER USER"))
        connection.execute(sa.text("VACUUM ANALYZE trends, trend_totals"))


def _counted(engine: sa.Engine) -> int:
    """Posts that the trends count; fewer where a fill was broken off."""
    with engine.connect() as connection:
        counted = connection.execute(
            sa.select(sa.func.coalesce(sa.func.sum(trend_totals.c.posts), 0)).where(
                trend_totals.c.topic == ALL_POSTS, trend_totals.c.grain == int(Grain.DAY)
            )
        ).scalar_one()
    return int(counted)


def _sizes(engine: sa.Engine) -> dict[str, object]:
    with engine.connect() as connection:
        rows, size, total_rows, total_size = connection.execute(
            sa.text(
                "SELECT (SELECT count(*) FROM trends), pg_total_relation_size('trends'), "
                "(SELECT count(*) FROM trend_totals), pg_total_relation_size('trend_totals')"
            )
        ).one()
    return {
        "trend_rows": rows,
        "trends_mib": round(size / 2**20),
        "trend_total_rows": total_rows,
        "trend_totals_mib": round(total_size / 2**20),
    }
