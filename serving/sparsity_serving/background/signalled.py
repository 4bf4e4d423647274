"""An event that a signal handler may set."""

from __future__ import annotations

import os
import select
import weakref


class SignalledEvent:
    """Set once, by a signal handler or whoever else, whatever the thread that waits is doing at that moment.

    The lock of a `threading.Event` is not re-entrant: a handler that comes while its thread holds it, within ``wait``,
    waits for itself for ever.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._reader, self._writer = os.pipe()
        # One byte is enough; nobody reads it, so that every wait from then on ends at once.
        os.set_blocking(self._writer, False)
        for descriptor in (self._reader, self._writer):
            weakref.finalize(self, os.close, descriptor)

    def set(self) -> None:
        """Ends every wait."""
        if not self._is_set:
            self._is_set = True
            os.write(self._writer, b"\0")

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Waits until it is set, for so many seconds at most; whether it is."""
        select.select([self._reader], [], [], seconds)
        return self._is_set
