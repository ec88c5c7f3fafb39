"""`crowdtone bench encode`: an encoder's loop, record bytes to embedding bytes, over the bare model loop.

No broker: what one process does between reading and writing. The bare loop is the same model, in the same
process, on inputs that are ready for it: tokenised and packed over the whole load, or decoded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import Annotated, Final

import numpy as np
import torch
import typer
from prometheus_client import generate_latest

from benchmarks import load
from benchmarks.figures import AsJson, Device, OnDevice, Rounds, in_turn_by, show
from benchmarks.system import servers
from benchmarks.usage import batches, shares, usage
from deploy.local import stack
from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from services.text_encoder.encoder import Floats, TextEncoder
from services.text_encoder.settings import TextEncoderSettings
from shared import e5_weights, heartbeat, worker
from shared.canary import Canary
from shared.device import choose_device, started_on
from shared.e5 import E5, Bert, BertConfig, Reading, token_batches, tokenizer_of
from shared.embedding_cache import EmbeddingCache
from shared.encoding import TURNS, Encoder, Input, encode_step
from shared.media import MediaStore
from shared.messages import Modality, Output, Post, Record, Result, Step, TopicPartition
from shared.settings import MediaSettings, ModelSettings, TextModelSettings

CACHE_TTL_S: Final = 3600
# Longest that processes wait for one another: the first round compiles.
PATIENCE_S: Final = 600.0
# A clip costs a second of CPU, a picture a fifteenth: so many posts take about a minute a round on two cores.
POSTS: Final = {Modality.TEXT: 2000, Modality.IMAGE: 400, Modality.AUDIO: 160}


class Kind(StrEnum):
    text = "text"
    image = "image"
    audio = "audio"


class Shape(StrEnum):
    default = "default"
    roberta_base = "roberta-base"


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder to measure.

    bare: makes the bare model loop over these inputs. poll: posts that one step is given at most.
    """

    encoder: Encoder
    bare: Callable[[Sequence[Input]], Callable[[], object]]
    poll: int


@dataclass(slots=True)
class Seen:
    """What the rounds of the service saw. batch_s: what each step took. filled: what the batches held."""

    batch_s: list[float] = field(default_factory=list)
    filled: Counter[str] = field(default_factory=Counter)


def encode(
    modality: Annotated[Kind, typer.Option(help="Which encoder.")] = Kind.text,
    shape: Annotated[
        Shape, typer.Option(help="Of the text model: the default one, or RoBERTa-base's with random weights.")
    ] = Shape.default,
    posts: Annotated[
        int, typer.Option(help="Posts in the load; 0: as many as take about a minute.", min=0)
    ] = 0,
    no_model: Annotated[
        bool,
        typer.Option(
            "--no-model",
            help="Texts are answered with zeros: what the process around the model can do, and so the most "
            "that it could give a GPU.",
        ),
    ] = False,
    repost_share: Annotated[
        float,
        typer.Option(
            help="So many posts repeat an earlier one, and a Redis of its own caches.", min=0, max=0.99
        ),
    ] = 0.0,
    processes: Annotated[
        int,
        typer.Option(
            help="Processes of the service at once, on one device, each with a share of the load as if it "
            "had partitions of its own: one alone is too slow for a GPU.",
            min=1,
        ),
    ] = 1,
    rounds: Rounds = 3,
    device: OnDevice = Device.auto,
    as_json: AsJson = False,
) -> None:
    """An encoder's loop, from record bytes to embedding bytes, over the bare model loop."""
    slot = Modality[modality.upper()]
    if no_model and (slot is not Modality.TEXT or repost_share):
        raise typer.BadParameter("is for texts, without --repost-share", param_hint="--no-model")
    if processes > 1 and (no_model or repost_share):
        raise typer.BadParameter("goes with neither --no-model nor --repost-share", param_hint="--processes")
    model = ModelSettings(device=choose_device(device))
    subject = _subject(modality, shape, model, no_model)
    with ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="crowdtone-bench-")))
        media = MediaStore(MediaSettings(url=folder.as_uri()))
        every = [post for post in load.posts(posts or POSTS[slot]) if slot in post.expected]
        if slot is not Modality.TEXT:
            every = load.with_media(every, media, [slot])
        every = load.reposted(every, repost_share)
        inputs = [input_of(slot, media, post) for post in every]
        seen = Seen()
        if processes == 1:
            plain = _through(subject, media, None, load.records(every), seen)
        else:
            shares_of = [load.records(every[number::processes]) for number in range(processes)]
            plain = kept.enter_context(_side_by_side(modality, shape, model, folder, shares_of, seen))
        figures: dict[str, object] = {
            "modality": modality.value,
            "shape": shape.value,
            "device": model.device,
            "threads": torch.get_num_threads(),
            "posts": len(every),
            "processes": processes,
        }
        if repost_share:
            redis = kept.enter_context(heartbeat.connect(kept.enter_context(servers(stack.REDIS)).redis))
            cache = EmbeddingCache(redis, subject.encoder, ttl_s=CACHE_TTL_S)
            caching = _through(subject, media, cache, load.records(every), Seen())

            def with_cache() -> None:
                redis.flushdb()  # what is known at the start of a round is known to nobody in life
                caching()

            ours = os.getpid()
            without, cached = in_turn_by(rounds, (plain, ours), (with_cache, ours))
            figures |= {
                "repost_share": repost_share,
                "posts_per_s": round(len(every) / cached.wall_s, 1),
                "posts_per_cpu_s": round(len(every) / cached.cpu_s, 1),
                "posts_per_s_without_cache": round(len(every) / without.wall_s, 1),
                "ratio_to_without_cache": round(without.wall_s / cached.wall_s, 3),
                "cpu_ratio_to_without_cache": round(without.cpu_s / cached.cpu_s, 3),
            }
        elif no_model:
            (around,) = in_turn_by(rounds, (plain, os.getpid()))
            figures |= {
                "posts_per_s": round(len(every) / around.wall_s, 1),
                "posts_per_cpu_s": round(len(every) / around.cpu_s, 1),
            }
        else:
            bare = subject.bare(inputs)
            ours = os.getpid()
            with usage() as used:
                alone, service = in_turn_by(rounds, (bare, ours), (plain, ours))
            figures |= {
                "posts_per_s": round(len(every) / service.wall_s, 1),
                "posts_per_cpu_s": round(len(every) / service.cpu_s, 1),
                "bare_loop_posts_per_s": round(len(every) / alone.wall_s, 1),
                "ratio_to_bare_loop": round(alone.wall_s / service.wall_s, 3),
                "cpu_ratio_to_bare_loop": round(alone.cpu_s / service.cpu_s, 3),
                **used,
            }
    if not no_model and not repost_share:
        figures |= shares(seen.filled)
    figures |= {
        f"batch_ms_p{p}": round(1000 * float(np.percentile(seen.batch_s, p)), 1) for p in (50, 95, 99)
    }
    show("encode", figures, as_json)


def input_of(slot: Modality, media: MediaStore, post: Post) -> Input:
    return Input(post.text, post.language, tuple(media.get(item.sha256) for item in post.media))


def _step(encoder: Encoder, media: MediaStore, cache: EmbeddingCache | None) -> Step:
    return encode_step("bench", encoder, media, canary=Canary(encoder), cache=cache)


class _Polls:
    """A source in memory, one poll after the other, and a sink that has all at once."""

    def __init__(self, polls: Sequence[Sequence[Record]]) -> None:
        self.left = deque(polls)
        self.committed = 0

    def poll(self) -> list[Record]:
        return list(self.left.popleft())

    def write(self, outputs: Sequence[Output]) -> None:
        pass

    def commit(self, finished: Mapping[TopicPartition, int]) -> None:
        (self.committed,) = finished.values()

    def lag_records(self) -> int:
        return sum(map(len, self.left))


def _through(
    subject: Subject, media: MediaStore, cache: EmbeddingCache | None, records: Sequence[Record], seen: Seen
) -> Callable[[], None]:
    """All records through the service's loop; what was `seen` is added, but for the first time, that warms
    up."""
    polls = [records[start : start + subject.poll] for start in range(0, len(records), subject.poll)]
    step = _step(subject.encoder, media, cache)
    warm = False

    def service() -> None:
        nonlocal warm
        kafka = _Polls(polls)
        now = Seen()
        before = batches(generate_latest().decode())

        def timed(records: Sequence[Record], at: float) -> Result:
            began = time.perf_counter()
            result = step(records, at)
            now.batch_s.append(time.perf_counter() - began)
            return result

        worker.run(
            "bench",
            kafka,
            timed,
            kafka,
            stopped=lambda: not kafka.left,
            dead_letter_limit=1,
            turns=TURNS,
        )
        now.filled.update(batches(generate_latest().decode()) - before)
        if kafka.committed != len(records):
            raise AssertionError(f"{kafka.committed} posts of {len(records)} answered")
        if warm:
            seen.batch_s += now.batch_s
            seen.filled.update(now.filled)
        warm = True

    return service


@contextmanager
def _side_by_side(
    modality: Kind,
    shape: Shape,
    model: ModelSettings,
    folder: Path,
    shares_of: Sequence[Sequence[Record]],
    seen: Seen,
) -> Iterator[Callable[[], None]]:
    """Processes of the service, one for each share of the records: what is given lets all work theirs off
    once. What they have `seen` is there at the end of `with`."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(len(shares_of) + 1)
    # Not among the arguments: a start waits until those are read, for which a process imports torch first.
    given: multiprocessing.Queue[Sequence[Record]] = context.Queue()
    told: multiprocessing.SimpleQueue[Seen] = context.SimpleQueue()
    arguments = (modality, shape, model, folder, given, together, told)
    started = [context.Process(target=_serve, args=arguments, daemon=True) for _ in shares_of]
    for process, records in zip(started, shares_of, strict=True):
        process.start()
        given.put(records)

    def work_off() -> None:
        together.wait(PATIENCE_S)
        together.wait(PATIENCE_S)

    yield work_off
    together.abort()
    for _ in started:
        own = told.get()
        seen.batch_s += own.batch_s
        seen.filled.update(own.filled)
    for process in started:
        process.join()


def _serve(
    modality: Kind,
    shape: Shape,
    model: ModelSettings,
    folder: Path,
    given: multiprocessing.Queue[Sequence[Record]],
    together: Barrier,
    told: multiprocessing.SimpleQueue[Seen],
) -> None:
    seen = Seen()
    try:
        subject = _subject(modality, shape, model)
        service = _through(subject, MediaStore(MediaSettings(url=folder.as_uri())), None, given.get(), seen)
        with suppress(BrokenBarrierError):
            while True:
                together.wait(PATIENCE_S)
                service()
                together.wait(PATIENCE_S)
    except BaseException:
        together.abort()  # nobody waits for this one
        raise
    told.put(seen)


def _subject(modality: Kind, shape: Shape, model: ModelSettings, no_model: bool = False) -> Subject:
    return _text(model, shape, _WithoutModel) if no_model else SUBJECTS[modality](model, shape)


class _WithoutModel(TextEncoder):
    """Reads texts as the service does, and answers with zeros at once."""

    def _batch(self, rows: Sequence[Reading]) -> Callable[[], Sequence[Floats]]:
        vectors = list(np.zeros((len(rows), self.dimensions[Modality.TEXT]), np.float32))
        return lambda: vectors


def _text(model: ModelSettings, shape: Shape, encoder: type[TextEncoder] = TextEncoder) -> Subject:
    text = TextModelSettings()
    if shape is Shape.default:
        e5 = E5.load(
            text.model,
            cache_dir=model.cache_dir,
            device=model.device,
            precision=text.precision,
            max_tokens=text.max_tokens,
            prefix=text.prefix,
            adapter=text.adapter,
        )
    else:
        dtype = torch.float16 if model.device == "cuda" else torch.float32
        e5 = roberta_base(model, text.max_tokens).to(model.device, dtype).eval()
    budget = text.token_budget(model.device)
    if model.compile:
        e5.compile_for(budget)

    @torch.inference_mode()
    def computed(batches: Sequence[Callable[[], torch.Tensor]]) -> Callable[[], Sequence[torch.Tensor]]:
        vectors = [batch() for batch in batches]
        return lambda: [some.cpu() for some in vectors]

    start = started_on(model.device, computed)

    def bare(inputs: Sequence[Input]) -> Callable[[], object]:
        rows = e5.tokenize([item.text for item in inputs])
        packed = token_batches([*map(len, rows)], budget)
        batches = [e5.ready([rows[i] for i in batch]) for batch in packed]

        def loop() -> None:
            for vectors in [start([batch]) for batch in batches]:
                vectors()

        return loop

    return Subject(
        encoder(e5, max_batch_tokens=budget), bare, TextEncoderSettings().posts_of_poll(model.device)
    )


def roberta_base(model: ModelSettings, max_tokens: int) -> E5:
    """RoBERTa-base's shape with random weights, and the default model's tokenizer and so its vocabulary."""
    folder = e5_weights.default_folder(model.cache_dir)
    tokenize, pad_id = tokenizer_of(folder, max_tokens)
    config = BertConfig(
        vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    torch.manual_seed(0)
    with torch.device(model.device):  # a GPU draws them in no time
        network = Bert(config, torch.randn(config.vocab_size, config.hidden_size) / config.hidden_size**0.5)
    return E5(
        network,
        tokenize,
        dimension=config.hidden_size,
        pad_id=pad_id,
        prefix="",
        max_tokens=max_tokens,
        model_version="roberta-base-shape@random",
    )


def _image(model: ModelSettings, shape: Shape) -> Subject:
    settings = ImageEncoderSettings()
    encoder = ImageEncoder.load(model, settings)

    def bare(inputs: Sequence[Input]) -> Callable[[], object]:
        pictures = list(encoder.prepare(inputs))
        return lambda: encoder.forward(pictures)

    return Subject(encoder, bare, settings.posts_of_poll(model.device))


def _audio(model: ModelSettings, shape: Shape) -> Subject:
    from services.audio_encoder.encoder import AudioEncoder  # PyAV and more, for those who want sounds
    from services.audio_encoder.settings import AudioEncoderSettings

    settings, text = AudioEncoderSettings(), TextModelSettings()
    encoder = AudioEncoder.load(model, settings, text)

    def bare(inputs: Sequence[Input]) -> Callable[[], object]:
        """Of decoded clips all that the device computes but the vectors of their transcripts: who speaks,
        prosody, log-mel, Whisper with the clips that are heard again; and to read what it wrote."""
        clips = list(encoder.prepare(inputs))
        return lambda: encoder.forward(clips)

    return Subject(encoder, bare, settings.posts_of_poll(model.device))


SUBJECTS: Final = {Kind.text: _text, Kind.image: _image, Kind.audio: _audio}
