"""A TCP proxy of the tests' own: a network that delays, holds back, cuts and refuses when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

CHUNK_BYTES: Final = 64 * 1024


class Proxy:
    """Listens on `port` and passes bytes on to `upstream_port`, both on loopback, from a thread of its own.

    delay_s: how long each chunk waits. stalled: nothing passes, in either direction, and nobody is told.
    deaf: what the server says is lost.
    watch: sees every chunk on its way to the server; may change this proxy, and returns whether the chunk
    passes on. It is called on the proxy's thread.
    """

    def __init__(self, port: int, upstream_port: int) -> None:
        self.port = port
        self.delay_s = 0.0
        self.stalled = False
        self.deaf = False
        self.watch: Callable[[bytes], bool] = lambda chunk: True
        self.upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)
        self._thread.start()
        self.accept()

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def accept(self) -> None:
        """Take connections again."""
        self._do(self._accept())

    def refuse(self) -> None:
        """End every connection with a reset, and let nobody connect: as if nothing listened here."""
        self._do(self._refuse())

    def cut(self) -> None:
        """End every connection with a reset; who connects again is served."""
        self._do(self._cut())

    def calm(self) -> None:
        """Be a cable again."""
        self.delay_s, self.stalled, self.deaf, self.watch = 0.0, False, False, lambda chunk: True
        self.accept()

    def cut_here(self) -> None:
        """`cut`, for a `watch` to call."""
        for writer in list(self._writers):
            _reset(writer)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _end(self) -> None:
        await self._refuse()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _cut(self) -> None:
        self.cut_here()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above, below = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            _reset(writer)
            return
        pair = {writer, below}
        self._writers |= pair
        try:
            await asyncio.gather(
                self._pass(reader, below, to_server=True), self._pass(above, writer, to_server=False)
            )
        except OSError:
            pass
        finally:
            self._writers -= pair
            for each in pair:
                each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            while self.stalled:
                await asyncio.sleep(0.02)
            if not self.watch(chunk) if to_server else self.deaf:
                continue
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side gets ECONNRESET and not a polite end."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
