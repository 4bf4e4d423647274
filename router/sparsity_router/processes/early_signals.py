"""Signals that come before there is anything to act upon them: kept until there is, instead of ending the process.

Imports nothing that takes time: it is the first thing that a process does.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final

SWITCHES: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""The kill switch on, and off."""
KEPT: Final = (*SWITCHES, signal.SIGHUP)


class EarlySignals:
    """The signals of this process that nobody has acted upon yet."""

    def __init__(self) -> None:
        self._came: list[int] = []

    def keep(self) -> None:
        """Keeps what comes from now on, and what has come, where the process was started with these blocked.

        Of a switch that came on and off meanwhile nobody knows in which order: then it is on.
        """
        for number in KEPT:
            signal.signal(number, self._note)
        if signal.sigpending().issuperset(SWITCHES):
            signal.sigwait({signal.SIGUSR2})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)

    def hand_over(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Acts upon what has come, of the switches upon the last; ``handlers`` are in force already."""
        came, self._came = self._came, []
        last = [number for number in came if number in SWITCHES][-1:]
        for number in (*last, *set(came).difference(SWITCHES)):
            handlers[signal.Signals(number)]()


EARLY: Final = EarlySignals()
"""Of this process."""
