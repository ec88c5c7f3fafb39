"""`crowdtone bench peers`: the text encoder's step beside what others make of the same model and texts.

The peers live in environments of their own below the cache, with the versions of `peer_requirements/`: none
of them is a dependency of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from benchmarks import load
from benchmarks.figures import AsJson, Device, OnDevice, Rounds, in_turn_by, show
from services.text_encoder.encoder import TextEncoder
from services.text_encoder.settings import TextEncoderSettings
from shared import e5_weights
from shared.canary import Canary
from shared.device import choose_device
from shared.e5 import E5_PREFIX, NO_ADAPTER
from shared.encoding import Input, encode_step
from shared.media import MediaStore
from shared.messages import Modality
from shared.settings import MediaSettings, ModelSettings, TextModelSettings

REQUIREMENTS: Final = Path(__file__).with_name("peer_requirements")
WORKER: Final = Path(__file__).with_name("peer_worker.py")
START_S: Final = 1200.0
# A server that outlived us would take the cores of the next measurement.
DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "TERM", "--")
# So many requests at once of so many texts: infinity's batches are never starved.
CONCURRENT: Final = 8
REQUEST_TEXTS: Final = 32
SHOWN: Final = 4
LEAST_COSINE: Final = 0.999
OURS: Final = "crowdtone"
OURS_EXACT: Final = "crowdtone_float32"

Vectors = Callable[[Sequence[str]], Any]
"""All texts through a peer; returns the vectors of the first SHOWN."""

Peer = tuple[Vectors, int]
"""And the process that does it, with its children."""


class Missing(Exception):
    """A peer cannot be had on this machine; the reason."""


def peers(
    posts: Annotated[int, typer.Option(help="Posts in the load.", min=SHOWN)] = 500,
    rounds: Rounds = 3,
    device: OnDevice = Device.cpu,
    as_json: AsJson = False,
) -> None:
    """The text encoder's step over sentence-transformers, the transformers pipeline and infinity, on the CPU.

    The default model without its adapter, whose weights only we have; ours as it is by default (int8 where
    that is possible) and in float32, as the peers compute it. What cannot be installed or does not start is
    null, with the reason under `why`.
    """
    if choose_device(device) != "cpu":
        raise typer.BadParameter("the peers are measured on the CPU")
    model, text = ModelSettings(device="cpu"), TextModelSettings(adapter=NO_ADAPTER)
    encoder = TextEncoder.load(model, text)
    exact = TextEncoder.load(model, text.model_copy(update={"precision": "float32"}))
    every = list(load.posts(posts))
    texts = [E5_PREFIX + post.text for post in every]  # as our service puts it before
    records = load.records(every)
    poll = TextEncoderSettings().posts_of_poll("cpu")
    why: dict[str, str] = {}
    cosines: dict[str, float] = {}
    own, fast = (
        [
            answer[Modality.TEXT].vector
            for answer in either.encode([Input(post.text) for post in every[: max(SHOWN, poll)]])
        ]
        for either in (exact, encoder)
    )
    with ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="crowdtone-peers-")))
        media = MediaStore(MediaSettings(url=folder.as_uri()))

        def through(encoder: TextEncoder) -> Callable[[], None]:
            step = encode_step("bench", encoder, media, canary=Canary(encoder))

            def ours() -> None:
                for start in range(0, posts, poll):
                    step(records[start : start + poll], 0.0)

            return ours

        works: dict[str, tuple[Callable[[], object], int]] = {
            OURS: (through(encoder), os.getpid()),
            OURS_EXACT: (through(exact), os.getpid()),
        }
        weights = e5_weights.default_folder(model.cache_dir)
        cache = model.cache_dir.expanduser()
        for name, start in PEERS.items():
            try:
                vectors, pid = kept.enter_context(start(cache, weights, folder))
                cosines[name] = min(map(_cosine, own[:SHOWN], vectors(texts[:SHOWN])))
            except Missing as missing:
                why[name] = str(missing)
                continue
            if cosines[name] < LEAST_COSINE:
                raise AssertionError(f"{name} runs another model: cosine {cosines[name]:.4f}")
            works[name] = (partial(vectors, texts), pid)
        took = dict(zip(works, in_turn_by(rounds, *works.values()), strict=True))
    figures: dict[str, object] = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "posts": posts,
        "model_version": encoder.model_version,
        "posts_per_s": round(posts / took[OURS].wall_s, 1),
        "float32_posts_per_s": round(posts / took[OURS_EXACT].wall_s, 1),
    }
    for name in PEERS:
        of_peer = took.get(name)
        figures[f"{name}_posts_per_s"] = round(posts / of_peer.wall_s, 1) if of_peer else None
        for prefix, mine in (("", took[OURS]), ("float32_", took[OURS_EXACT])):
            wall = round(of_peer.wall_s / mine.wall_s, 3) if of_peer else None
            cpu = round(of_peer.cpu_s / mine.cpu_s, 3) if of_peer else None
            figures[f"{prefix}ratio_to_{name}"] = wall
            figures[f"{prefix}cpu_ratio_to_{name}"] = cpu
    to_float32 = [*map(_cosine, own, fast)]
    figures |= {
        "least_cosine": round(min(cosines.values(), default=1.0), 5),
        "mean_cosine_to_float32": round(float(np.mean(to_float32)), 5),
        "least_cosine_to_float32": round(min(to_float32), 5),
        "why": why,
    }
    show("peers", figures, as_json)


def _cosine(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@contextmanager
def _worker(kind: str, cache: Path, weights: Path, folder: Path) -> Iterator[Peer]:
    """`peer_worker.py` in the environment of sentence-transformers, which has transformers too."""
    python = _environment(cache, "sentence_transformers")
    log = folder / f"{kind}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*DIES_WITH_US, python, WORKER, kind, weights],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_variables(),
        )
    try:

        def vectors(texts: Sequence[str]) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                print(json.dumps(list(texts)), file=process.stdin, flush=True)
            except BrokenPipeError:
                raise Missing(_last_line(log)) from None
            line = process.stdout.readline()
            if not line:
                raise Missing(_last_line(log))
            return json.loads(line)

        yield vectors, process.pid
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _infinity(cache: Path, weights: Path, folder: Path) -> Iterator[Peer]:
    """Its server on a free port, asked over HTTP by CONCURRENT clients."""
    python = _environment(cache, "infinity")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "infinity.log"
    command = [
        *DIES_WITH_US,
        str(python.with_name("infinity_emb")),
        "v2",
        "--model-id",
        str(weights),
        "--served-model-name",
        "e5",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--engine", "torch", "--device", "cpu"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, env=_variables())
    address = f"http://127.0.0.1:{port}"

    def ask(texts: Sequence[str]) -> list[list[float]]:
        body = json.dumps({"model": "e5", "input": list(texts)}).encode()
        request = urllib.request.Request(f"{address}/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return [each["embedding"] for each in json.load(answer)["data"]]

    clients = ThreadPoolExecutor(CONCURRENT)

    def vectors(texts: Sequence[str]) -> Any:
        parts = [texts[start : start + REQUEST_TEXTS] for start in range(0, len(texts), REQUEST_TEXTS)]
        return next(iter(list(clients.map(ask, parts))))[:SHOWN]

    try:
        until = time.monotonic() + START_S
        while True:
            if process.poll() is not None:
                raise Missing(_last_line(log))
            if time.monotonic() > until:
                raise Missing(f"did not answer within {START_S:.0f} s; {_last_line(log)}")
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield vectors, process.pid
    finally:
        clients.shutdown()
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


PEERS: Final[dict[str, Callable[[Path, Path, Path], AbstractContextManager[Peer]]]] = {
    "sentence_transformers": partial(_worker, "sentence_transformers"),
    "pipeline": partial(_worker, "pipeline"),
    "infinity": _infinity,
}


def _environment(cache: Path, name: str) -> Path:
    """The Python of a peer's environment, made the first time (minutes, 5 GB). Raises Missing."""
    wanted = REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    folder = cache / "peers" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists():
        return python
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise Missing("there is no uv to install it with")
    print(f"installing {name} under {folder}, once", file=sys.stderr)
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        [uv, "pip", "install", "--quiet", "--python", python, "--requirement", wanted],
    ]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise Missing(f"cannot be installed: {' '.join(ended.stderr.split())[-400:]}")
    done.touch()
    return python


def _variables() -> dict[str, str]:
    """Nothing is to be fetched or reported: the model is a folder."""
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return {name: value for name, value in os.environ.items() if not name.startswith("CROWDTONE_")} | quiet


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return f"ended with: {lines[-1][:300]}" if lines else "ended without a word"
