"""Ends a stream that says nothing for too long: a peer that goes on answering pings may hang all the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple

import grpc

from sparsity_rpc.errors import UnavailableError
from sparsity_rpc.reading import readable

_FOREVER = float("inf")


class Timeouts(NamedTuple):
    """Seconds that a stream may say nothing, to its first message and between two; its reader's own do not count."""

    first: float = _FOREVER
    between: float = _FOREVER


def silent(seconds: float) -> UnavailableError:
    """The error of a stream that was ended after so long a silence."""
    return UnavailableError(f"said nothing for {seconds:g} s")


def was_silent(error: BaseException) -> bool:
    """Whether it is the error of such a stream: others are of its kind, too."""
    return isinstance(error.__cause__, TimeoutError)


async def spoken_aio(call: Any, timeouts: Timeouts) -> AsyncGenerator[Any]:
    """The messages of an asynchronous call; one that says nothing for too long is cancelled.

    Raises:
        UnavailableError: after a silence.
        grpc.aio.AioRpcError: as the call ends; INTERNAL at a message that cannot be read.
    """
    loop, passed = asyncio.get_running_loop(), 0.0

    def give_up(seconds: float) -> None:
        nonlocal passed
        passed = seconds
        call.cancel()

    def timer(seconds: float) -> asyncio.TimerHandle | None:
        return None if seconds == _FOREVER else loop.call_later(seconds, give_up, seconds)

    waiting = timer(timeouts.first)
    try:
        async for message in call:
            if waiting:
                waiting.cancel()
            yield readable(message)
            waiting = timer(timeouts.between)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not passed or (task is not None and task.cancelling()):
            raise
        raise silent(passed) from TimeoutError()
    finally:
        if waiting:
            waiting.cancel()


def spoken(call: Any, timeouts: Timeouts) -> Iterator[Any]:
    """The messages of a blocking call; one that says nothing for too long is cancelled.

    Raises:
        UnavailableError: after a silence.
        grpc.RpcError: as the call ends.
    """
    if timeouts == Timeouts():
        yield from call
        return
    watch = _Watch(call, timeouts)
    try:
        for message in call:
            watch.expect(_FOREVER)
            yield message
            watch.expect(timeouts.between)
    except grpc.RpcError:
        if not watch.passed:
            raise
        raise silent(watch.passed) from TimeoutError()
    finally:
        watch.end()


class _Watch:
    """A thread that cancels a call when nothing came in time."""

    def __init__(self, call: Any, timeouts: Timeouts) -> None:
        self.passed = 0.0
        self._call = call
        # It need not look sooner than the next silence could end.
        self._look = min(timeouts)
        self._ended = threading.Event()
        self.expect(timeouts.first)
        threading.Thread(target=self._run, name="silence", daemon=True).start()

    def expect(self, seconds: float) -> None:
        """Something must come within ``seconds`` from now."""
        self._allowed, self._until = seconds, time.monotonic() + seconds

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(min(max(self._until - time.monotonic(), 0.0), self._look)):
            if time.monotonic() >= self._until:
                self.passed = self._allowed
                self._call.cancel()
                return
