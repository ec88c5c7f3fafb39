"""What is offered while faults happen: posts made by number, given to `crowdtone ingest` until it has them.

A user whose ingest was killed, or ended because something was away, runs it again on the same file; so does
`Feed`. What it promises is what `crowdtone ingest` does: a line is safe once an ingest that read it ended
with 0.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tests.stack import CROWDTONE, ROOT

MOODS: Final = ("love", "hate", "enjoy", "dread", "miss", "buy", "return", "recommend")
THINGS: Final = ("the comet phone", "a #harbour concert", "this comet at the #harbour", "my lunch")
WORDS: Final = [
    "I",
    "the",
    "a",
    "this",
    "at",
    "my",
    "comet",
    "phone",
    "#",
    "harbour",
    "concert",
    "lunch",
    *MOODS,
]
TOPICS: Final = {"comet": "comet", "harbour": "#harbour"}
"""Name of a topic -> the word that makes a post one of its posts."""
PLATFORMS: Final = ("bluesky", "mastodon", "reddit")
LANGUAGES: Final = ("en", "de", "ja", "pt")
SPAN_S: Final = 28 * 3600
"""Event times of a fault's posts: from noon of its day, over midnight, out of order."""
TICK_S: Final = 0.1
LINES_AT_ONCE: Final = 500
CLIPS: Final = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """The posts of one fault: every image_every-th has a picture, every sound_every-th a sound; 1 for none.

    picture_bytes: 0 for one of a few small pictures, else a picture of its own of about so many bytes.
    """

    name: str
    day: date
    image_every: int = 100
    sound_every: int = 1000
    picture_bytes: int = 0

    @property
    def starts(self) -> datetime:
        return datetime.combine(self.day, clock_time(12), UTC)

    @property
    def ends(self) -> datetime:
        return self.starts + timedelta(seconds=SPAN_S)

    def post(self, number: int) -> dict[str, Any]:
        """Post `number` as a line of JSON; the same number is the same post for ever."""
        media = []
        if number % self.image_every == 1:
            media.append(f"{self.name}-{number}.png" if self.picture_bytes else f"{number % 7}.png")
        if number % self.sound_every == 2:
            media.append(f"{number % CLIPS}.wav")
        when = self.starts + timedelta(seconds=number * 7919 % SPAN_S)
        return {
            "platform": PLATFORMS[number % len(PLATFORMS)],
            "id": f"{self.name}-{number:07d}",
            "author": f"author {number % 97}",
            "created_at": when.isoformat(),
            "text": f"I {MOODS[number % len(MOODS)]} {THINGS[number // len(MOODS) % len(THINGS)]}",
            "lang": LANGUAGES[number % len(LANGUAGES)],
            "media": media,
        }


def write_media(folder: Path) -> None:
    """The pictures and sounds that posts share."""
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (24, 24), (number * 36, 255 - number * 36, 128)).save(folder / f"{number}.png")
    for number in range(CLIPS):
        with wave.open(str(folder / f"{number}.wav"), "wb") as clip:
            clip.setnchannels(1)
            clip.setsampwidth(2)
            clip.setframerate(16_000)
            loud = 4000 * (number + 1)
            clip.writeframes(
                b"".join(
                    (loud if i // 40 % 2 else -loud).to_bytes(2, "little", signed=True) for i in range(8_000)
                )
            )


class Feed:
    """Offers posts to `crowdtone ingest jsonl -` from a thread of its own, again from the start if it ends.

    offered: how many were offered so far. exits: how ingest ended each time it did. All of them are in
    `file`, for whoever wants to count.
    """

    def __init__(self, env: Mapping[str, str], directory: Path, media: Path, plan: Plan) -> None:
        self.plan = plan
        self.file = directory / f"{plan.name}.jsonl"
        self.exits: list[int] = []
        self._env, self._media, self._log = env, media, directory / f"{plan.name}.ingest.log"
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._rate_per_s = 0.0
        self._due = 0.0
        self._ending = False
        self._abandoned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"feed-{plan.name}", daemon=True)
        self._thread.start()

    @property
    def offered(self) -> int:
        return len(self._lines)

    def offer(self, count: int) -> None:
        """Offer so many more at once."""
        with self._lock, self.file.open("ab") as file:
            for number in range(len(self._lines), len(self._lines) + count):
                post = self.plan.post(number)
                for name in post["media"]:
                    self._make(name)
                line = json.dumps(post).encode() + b"\n"
                file.write(line)
                self._lines.append(line)

    def flow(self, rate_per_s: float) -> None:
        """From now on offer so many a second."""
        self._rate_per_s = rate_per_s

    def kill(self) -> None:
        """kill -9 of the ingest under way."""
        if self._process is not None:
            self._process.kill()

    def finish(self, timeout_s: float) -> bool:
        """Nothing more comes: wait until one ingest has read every line and ended with 0; whether one did."""
        self._rate_per_s, self._ending = 0.0, True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """End at once, whatever became of the posts."""
        self._abandoned = True
        self.kill()
        self._thread.join(30)

    def _make(self, name: str) -> None:
        """A picture that no other post has: what follows its end, which no decoder reads, is its own."""
        if name.startswith(self.plan.name):
            filling = name.encode() * (self.plan.picture_bytes // len(name))
            (self._media / name).write_bytes((self._media / "0.png").read_bytes() + filling)

    def _run(self) -> None:
        while not self._abandoned:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*CROWDTONE, "ingest", "jsonl", "-", "--media", str(self._media), "--json"],
                    env=dict(self._env),
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                )
            whole = self._give(self._process)
            code = self._process.wait()
            self.exits.append(code)
            if whole and code == 0:
                return
            time.sleep(0.5)

    def _give(self, process: subprocess.Popen[bytes]) -> bool:
        """Write every line there is and those that come; whether all that will ever be were written."""
        assert process.stdin is not None
        given, before = 0, time.monotonic()
        try:
            with process.stdin as pipe:
                while process.poll() is None and not self._abandoned:
                    now = time.monotonic()
                    self._due += self._rate_per_s * (now - before)
                    before = now
                    if self._due >= 1:
                        self.offer(int(self._due))
                        self._due %= 1
                    lines = self._lines[given : given + LINES_AT_ONCE]
                    if lines:
                        pipe.write(b"".join(lines))
                        pipe.flush()
                        given += len(lines)
                    elif self._ending:
                        return given == len(self._lines)
                    else:
                        time.sleep(TICK_S)
        except BrokenPipeError:
            pass
        return False
