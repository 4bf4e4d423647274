"""Notices from a thread of its own that an event loop does not run, and what must not wait for it.

Everything that a router does goes through one loop: a call that holds it holds the health service, the kill switch and
the end of the process, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("sparsity.watchdog")
_TICK_SECONDS = 0.1
# Told from so long on.
_NOTICED_SECONDS = 1.0
# A process that is to end and whose loop does not hear of it is ended.
_END_SECONDS = 5.0
LIVE_SECONDS = 10.0
"""A loop that has stood still for so long is not alive."""


class Watchdog:
    """Watches the running loop, until :meth:`stop`.

    Args:
        alive: told, on the thread, whether the loop counts as alive, at every change.
        bound: for how long it may stand still before it does not, seconds.
    """

    def __init__(self, alive: Callable[[bool], None] = lambda alive: None, bound: float = LIVE_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._alive = alive
        self._bound = bound
        self._beaten = time.monotonic()
        self._asked = False
        self._end_by = float("inf")
        self._stopped = threading.Event()
        self.stalls = 0
        """How many times the loop stood still for a second or more."""
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def stalled(self) -> float:
        """For how long the loop has stood still, seconds; 0 while it runs."""
        behind = time.monotonic() - self._beaten - 2 * _TICK_SECONDS
        return max(behind, 0.0) if self._asked else 0.0

    def must_end(self) -> None:
        """Ends the process soon if the loop stands still; it is asked to end by itself as well."""
        self._end_by = min(self._end_by, time.monotonic() + _END_SECONDS)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        self._beaten, self._asked = time.monotonic(), False

    def _run(self) -> None:
        told, alive = False, True
        while not self._stopped.wait(_TICK_SECONDS):
            if not self._asked:
                self._beaten, self._asked = time.monotonic(), True
                try:
                    self._loop.call_soon_threadsafe(self._beat)
                except RuntimeError:  # it is closed
                    return
            stalled = self.stalled
            if stalled > _NOTICED_SECONDS and not told:
                self.stalls += 1
                log.error("the event loop has stood still for %.1f s, in %s", stalled, self._where())
            elif told and stalled < _NOTICED_SECONDS:
                log.warning("the event loop runs again")
            told = stalled > _NOTICED_SECONDS
            if alive is not (stalled < self._bound):
                alive = not alive
                self._alive(alive)
            if told and time.monotonic() > self._end_by:
                log.critical("ended, since the event loop does not hear that it should: it is in %s", self._where())
                os._exit(1)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        places = traceback.extract_stack(frame)[-3:] if frame else []
        return " < ".join(f"{place.name} ({place.filename}:{place.lineno})" for place in reversed(places)) or "nowhere"


@contextmanager
def signals(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Calls a handler in the main thread as soon as its signal comes, also while a callback holds the event loop.

    What a loop's own handlers do waits for the loop. These may come between any two instructions: keep them to what
    takes no harm from that.
    """
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, lambda *_, handler=handler: handler())
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
