"""Processes that compute by turns: what slows the machine down for a while slows all of them alike."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Final

import psutil

# Short beside what a neighbour's work takes, long beside what the caches lose at a change.
_TURN_SECONDS: Final = 0.25


class Turns:
    """Processes with their children, of which one at a time goes on while the others stand still.

    Args:
        pids: of the processes.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        parents = [psutil.Process(pid) for pid in pids]
        self._sides = [[parent, *parent.children(recursive=True)] for parent in parents]
        self._spent = [0.0] * len(pids)
        self._place, self._since = 0, time.perf_counter()
        self._changing, self._ended = threading.Lock(), threading.Event()

    def seconds(self, place: int) -> float:
        """What the turns of a process have taken so far."""
        with self._changing:
            now = time.perf_counter() - self._since if place == self._place else 0.0
            return self._spent[place] + now

    @contextmanager
    def taken(self) -> Iterator[None]:
        """They take turns in here, and go on together afterwards."""
        taking = threading.Thread(target=self._take)
        taking.start()
        try:
            yield
        finally:
            self._ended.set()
            taking.join()

    def _take(self) -> None:
        try:
            for place in cycle(range(len(self._sides))):
                self._give(place)
                if self._ended.wait(_TURN_SECONDS):
                    return
        finally:
            for side in self._sides:
                _signal(side, signal.SIGCONT)

    def _give(self, place: int) -> None:
        with self._changing:
            for other, side in enumerate(self._sides):
                if other != place:
                    _signal(side, signal.SIGSTOP)
            now = time.perf_counter()
            self._spent[self._place] += now - self._since
            self._place, self._since = place, now
            _signal(self._sides[place], signal.SIGCONT)


def _signal(side: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in side:
        # Who asks it hears that it has ended; the others are not to stand still for that.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
