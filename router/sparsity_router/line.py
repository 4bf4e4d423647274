"""Requests that wait for room at a tier: by priority, then by arrival, for a bounded time and in bounded number."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparsity.errors import OverloadedError

# A worker that said it was full is not asked again sooner, whatever its load report says.
_BREATH_SECONDS = 0.02


@dataclass(order=True, slots=True)
class Ticket:
    """A place in line; an earlier one sorts first."""

    place: tuple[int, int]
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    evicted: bool = field(default=False, compare=False)
    tried: bool = field(default=False, compare=False)


class Line:
    """The line of one tier.

    Args:
        limit: requests that may wait; when it is full a more urgent one takes the place of the least urgent.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[Ticket] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def ticket(self, priority: int) -> Iterator[Ticket]:
        """Holds a place; a larger ``priority`` comes first.

        Raises:
            OverloadedError: when the line is full of requests that are at least as urgent.
        """
        ticket = Ticket((-priority, next(self._numbers)))
        if len(self._waiting) >= self._limit:
            last = self._waiting[-1] if self._waiting else None
            if last is None or last.place[0] <= ticket.place[0]:
                raise OverloadedError(f"the line holds its {self._limit} requests; try again")
            self._waiting.remove(last)
            last.evicted = True
            last.woken.set()
        bisect.insort(self._waiting, ticket)
        try:
            yield ticket
        finally:
            self.leave(ticket)

    def rejoin(self, ticket: Ticket) -> None:
        """Takes the old place again, when what there was room at would not have the request after all."""
        ticket.tried = True
        if ticket not in self._waiting:
            bisect.insort(self._waiting, ticket)

    def leave(self, ticket: Ticket) -> None:
        """Gives the place up, once sent or gone; where there was room for one there may be room for the next."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self.wake()

    async def turn(self, ticket: Ticket, seconds: float) -> None:
        """Waits until this request is first in line and there may be room.

        Raises:
            OverloadedError: when ``seconds`` pass first, or a more urgent request takes the place.
        """
        try:
            await asyncio.wait_for(ticket.woken.wait(), max(seconds, 0.0))
            ticket.woken.clear()
        except TimeoutError as error:
            raise OverloadedError("there was no room in time; try again") from error
        if ticket.evicted:
            raise OverloadedError("a more urgent request took the place in line; try again")
        if ticket.tried:
            await asyncio.sleep(_BREATH_SECONDS)

    def wake(self) -> None:
        """Lets the first in line try again."""
        if self._waiting:
            self._waiting[0].woken.set()
