"""The channels by which a client streams from workers themselves: as many as it uses, and not all it ever used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

C = TypeVar("C")
# Workers come and go under changing addresses; an idle channel is dear to nobody, and opened again in milliseconds.
MOST_IDLE: Final = 64


@dataclass(slots=True)
class _Used(Generic[C]):
    channel: C
    streams: int = 0


class WorkerChannels(Generic[C]):
    """Channels by address, from any thread; of those without a stream :data:`MOST_IDLE` are kept, the last used."""

    def __init__(self, open_one: Callable[[str], C]) -> None:
        self._open = open_one
        self._lock = Lock()
        # In the order of their last use.
        self._used: dict[str, _Used[C]] = {}

    def borrow(self, address: str) -> C:
        """The channel to ``address``, for one stream; :meth:`give_back` follows."""
        with self._lock:
            used = self._used.pop(address, None) or _Used(self._open(address))
            self._used[address] = used
            used.streams += 1
            return used.channel

    def give_back(self, address: str) -> list[C]:
        """Ends a stream's use of its channel, and returns those that the caller closes now."""
        with self._lock:
            used = self._used.get(address)
            if used is None:  # closed under its stream
                return []
            used.streams -= 1
            idle = [name for name, each in self._used.items() if not each.streams]
            return [self._used.pop(name).channel for name in idle[: max(len(idle) - MOST_IDLE, 0)]]

    def all(self) -> list[C]:
        """Every channel, which the caller closes now."""
        with self._lock:
            channels = [used.channel for used in self._used.values()]
            self._used.clear()
            return channels
