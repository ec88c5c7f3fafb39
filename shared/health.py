"""Whether this process works: asked over HTTP by an orchestrator, and enforced by a watchdog.

/livez fails when the loop is stuck: restart it. /readyz fails when a dependency is away too: a restart would
not help. Neither says anything of the model: the canary does (`shared.canary`), by ending the process.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

log = logging.getLogger(__name__)

CHECKED_S: Final = 2.0
"""How long an answer of the dependencies is good for: many may ask."""

STDERR: Final = 2

Check = Callable[[], None]
"""Raises what it likes when a dependency does not answer; returns within a few seconds."""


class Health:
    """What the loop tells of itself, and what its dependencies answer when somebody asks."""

    def __init__(
        self,
        *,
        stall_s: float,
        checks: Mapping[str, Check],
        watchdog: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stall_s: a turn of the loop that takes longer is stuck.

        watchdog: then print where every thread is and end the process, so that whoever runs it starts it
        again although nobody asked; by a thread of C that runs even while a stuck one holds the interpreter.
        """
        self._stall_s = stall_s
        self._checks = checks
        self._watchdog = watchdog
        self._clock = clock
        self._turned_s = clock()
        self._turns = 0
        self._lock = threading.Lock()
        self._checked: tuple[float, str] | None = None

    def turned(self) -> None:
        """The loop begins a turn."""
        self._turned_s = self._clock()
        self._turns += 1
        if self._watchdog:
            # By number: sys.stderr may have been replaced by something that is no file.
            faulthandler.dump_traceback_later(self._stall_s, exit=True, file=STDERR)

    def ended(self) -> None:
        """The loop has ended, for whatever reason: nothing is watched any more."""
        if self._watchdog:
            faulthandler.cancel_dump_traceback_later()

    def not_live(self) -> str:
        """Why the process should be restarted; "" while it should not."""
        silent_s = self._clock() - self._turned_s
        return f"the loop is stuck: no turn for {silent_s:.0f} s" if silent_s > self._stall_s else ""

    def not_ready(self) -> str:
        """Why it does no work now; "" while it does, or would if there were any."""
        if reason := self.not_live():
            return reason
        if not self._turns:
            return "starting"
        with self._lock:
            if self._checked is None or self._clock() - self._checked[0] > CHECKED_S:
                self._checked = (self._clock(), self._away())
            return self._checked[1]

    def _away(self) -> str:
        away = []
        for name, check in self._checks.items():
            try:
                check()
            except Exception as error:
                log.info("%s does not answer: %s", name, error)
                away.append(name)
        return f"away: {', '.join(away)}" if away else ""


def serve(port: int, health: Health) -> None:
    """/metrics, /livez and /readyz on loopback at `port`, until the process ends; 0 serves nothing."""
    if not port:
        return
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(health))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


def handler(health: Health) -> type[BaseHTTPRequestHandler]:
    """Answers 200, or 503 with the reason in the body."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a client that says nothing keeps no thread

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
            elif self.path in ("/livez", "/readyz"):
                reason = health.not_live() if self.path == "/livez" else health.not_ready()
                self._answer(503 if reason else 200, (reason or "ok").encode() + b"\n", "text/plain")
            else:
                self._answer(404, b"/metrics, /livez, /readyz\n", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass  # one line every few seconds would say nothing

    return Handler


def end_after(stopped: Callable[[], bool], drain_s: float) -> Callable[[], None]:
    """Once `stopped()`, there are `drain_s` to end; after that the process ends with 75, its turn undone.

    That loses nothing: what is not committed is read again. What it returns calls it off.
    """
    off = threading.Event()

    def wait() -> None:
        while not stopped():
            if off.wait(0.1):
                return
        if off.wait(drain_s):
            return
        log.error("not drained within %.0f s; ending with offsets uncommitted", drain_s)
        logging.shutdown()
        os._exit(75)

    threading.Thread(target=wait, name="drain", daemon=True).start()
    return off.set
