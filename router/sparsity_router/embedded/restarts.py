"""Brings ended processes of the embedded service back, and says how that goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sparsity_router.embedded.child import Child

PROGRESS_SECONDS = 5.0
_MAX_BACKOFF = 30.0


@dataclass(slots=True)
class _Down:
    """A process that does not serve.

    Attributes:
        since: when that was found.
        told: when something was last said of it.
        due: when it is to be started; None once it is.
    """

    since: float
    told: float
    due: float | None


class Restarts:
    """Every process that ended, until it serves again; ``say`` gets a line at every step."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._down: dict[str, _Down] = {}

    def look(self, child: Child) -> bool:
        """Sees to one process; True where it was started anew, with another pid."""
        now, down = time.monotonic(), self._down.get(child.name)
        if child.exit_code is None:
            if down is not None:
                self._await(child, down, now)
            return False
        if down is None or down.due is None:
            delay = min(2.0**child.restarts - 1, _MAX_BACKOFF)
            self._say(f"{child.name} ended with {child.exit_code}; it restarts in {delay:.0f} s")
            down = self._down[child.name] = _Down(down.since if down else now, now, now + delay)
        if down.due is None or now < down.due:
            return False
        child.stop(0.0)
        child.restarts += 1
        child.start()
        down.told, down.due = now, None
        return True

    def _await(self, child: Child, down: _Down, now: float) -> None:
        if child.is_ready():
            del self._down[child.name]
            self._say(f"{child.name} serves again, {now - down.since:.1f} s after it ended")
        elif now - down.told > PROGRESS_SECONDS:
            down.told = now
            self._say(f"{child.name} loading, {now - down.since:.0f} s since it ended")
