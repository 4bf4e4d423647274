"""A TCP proxy whose faults a test sets."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType


class FaultProxy:
    """Passes bytes on to ``target``, with faults; set the attributes at any time.

    Attributes:
        refusing: closes new connections at once.
        silent: holds all bytes back, in both directions.
        unanswered: holds the target's bytes back.
        delay: seconds that bytes take, in each direction.
        garbage: answers with noise in the place of the target's bytes.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.refusing = False
        self.silent = False
        self.unanswered = False
        self.delay = 0.0
        self.garbage = False
        self.address = ""
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Resets every connection."""
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            back_reader, back_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back_writer}
        for source, sink, answers in ((reader, back_writer, False), (back_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                while self.silent or (answers and self.unanswered):  # noqa: ASYNC110 - an attribute that tests set, not an event
                    await asyncio.sleep(0.02)
                if self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(b"\xff\x00noise" * 8 if answers and self.garbage else data)
                await sink.drain()
        self._open.discard(sink)
        sink.close()
