"""Requests that wait for room at a tier: by priority, then by their tenant's turn, for a bounded time and number.

Turns are start-time fair queueing over tokens (Goyal, Vin, Cheng, SIGCOMM 1996; tokens as the cost as in Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024): a tenant that sends much waits behind one that sends little.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from sparsity_rpc.errors import OverloadedError

# A worker that said it was full is not asked again sooner, whatever its load report says.
_BREATH_SECONDS = 0.02


@dataclass(order=True, slots=True)
class Ticket:
    """A place in the queue; an earlier one sorts first.

    Attributes:
        place: negated priority, start tag in tokens, number of arrival.
        tenant: whose it is.
        tokens: what its turn costs.
        need: what it needs of a worker; those that need the same find room, or none, alike.
        woken: set when it may be its turn.
        evicted: whether it has lost its place.
        tried: whether it had a turn, and there was no room after all.
        charged: whether its turn was charged, which is done once, however often it is sent.
        aside: whether it waits for something else than room, and has no turn meanwhile.
    """

    place: tuple[int, int, int]
    tenant: str = field(compare=False)
    tokens: int = field(compare=False)
    need: Hashable = field(default=None, compare=False)
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    evicted: bool = field(default=False, compare=False)
    tried: bool = field(default=False, compare=False)
    charged: bool = field(default=False, compare=False)
    aside: bool = field(default=False, compare=False)


class TierQueue:
    """The queue of one tier.

    Args:
        limit: requests that may wait; when it is full a more urgent one takes the place of the least urgent.
        sent: told of the tokens of each request that leaves to be sent, 0 where it was before, to wake whoever is
            next; without it, that is the first in this queue.
    """

    def __init__(self, limit: int, sent: Callable[[int], None] | None = None) -> None:
        self._limit = limit
        self._sent = sent or (lambda tokens: self.wake())
        self._waiting: list[Ticket] = []
        self._numbers = itertools.count()
        # Tokens: the start tag of what was sent last, and where each tenant's next request may start.
        self._now = 0
        self._next: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def ticket(self, priority: int, tenant: str = "", tokens: int = 1, need: Hashable = None) -> Iterator[Ticket]:
        """Holds a place; a larger ``priority`` comes first, then the tenant that has had the least.

        Args:
            priority: of the request.
            tenant: whose it is; requests without one share a turn.
            tokens: what it may cost.
            need: what it needs of a worker.

        Raises:
            OverloadedError: when the queue is full of requests that come before it.
        """
        start = max(self._now, self._next.get(tenant, 0))
        ticket = Ticket((-priority, start, next(self._numbers)), tenant, tokens, need)
        if len(self._waiting) >= self._limit:
            last = self._waiting[-1] if self._waiting else None
            if last is None or last < ticket:
                full = OverloadedError(f"the queue holds its {self._limit} requests; try again")
                raise full.about({"limit": f"{self._limit} requests"})
            self._give_up(last)
            last.evicted = True
            last.woken.set()
        self._next[tenant] = start + tokens
        if self._waiting and all(other.need != need for other in self._waiting if not other.aside):
            # Those before it may wait for what it does not need.
            ticket.woken.set()
        bisect.insort(self._waiting, ticket)
        try:
            yield ticket
        finally:
            if ticket in self._waiting:
                self._give_up(ticket)
                self.wake()

    def rejoin(self, ticket: Ticket, *, refused: bool = True) -> None:
        """Takes the old place again, and passes the turn on to the first that has another need.

        One turn a need: where there is no room for one request there is none for those that need the same.

        Args:
            ticket: whose turn it was.
            refused: whether what there was room at would not have the request, and must be let be for a moment.
        """
        ticket.tried = refused
        if ticket not in self._waiting:
            bisect.insort(self._waiting, ticket)
        firsts: dict[Hashable, Ticket] = {}
        for each in self._waiting:
            if not each.aside:
                firsts.setdefault(each.need, each)
        needs = list(firsts)
        for need in needs[needs.index(ticket.need) + 1 :][:1]:
            firsts[need].woken.set()

    @asynccontextmanager
    async def aside(self, ticket: Ticket, seconds: float) -> AsyncIterator[None]:
        """Keeps the place while its request waits for something else than room: the turn goes on to those behind it.

        Raises:
            OverloadedError: when ``seconds`` pass first.
        """
        ticket.aside = True
        self.wake()
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                yield
        except TimeoutError as error:
            raise _too_late() from error
        finally:
            ticket.aside = False
            # It may be the first, or what it needs by now may be had.
            self.wake()

    def leave(self, ticket: Ticket) -> None:
        """Gives the place up, once sent; where there was room for one there may be room for the next."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._now = max(self._now, ticket.place[1])
            self._next = {tenant: start for tenant, start in self._next.items() if start > self._now}
            tokens, ticket.charged = 0 if ticket.charged else ticket.tokens, True
            self._sent(tokens)

    def _give_up(self, ticket: Ticket) -> None:
        """Takes a request out that was not sent, and gives its tenant the turn back."""
        self._waiting.remove(ticket)
        start = max(self._next.pop(ticket.tenant, 0) - ticket.tokens, self._now)
        if start > self._now:
            self._next[ticket.tenant] = start

    async def turn(self, ticket: Ticket, seconds: float) -> None:
        """Waits until there may be room, and nobody before this request takes it.

        Raises:
            OverloadedError: when ``seconds`` pass first, or a more urgent request takes the place.
        """
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await ticket.woken.wait()
            ticket.woken.clear()
        except TimeoutError as error:
            raise _too_late() from error
        if ticket.evicted:
            raise OverloadedError("a request that comes first took the place in the queue; try again")
        if ticket.tried:
            await asyncio.sleep(_BREATH_SECONDS)

    async def wake_all(self) -> None:
        """Lets everybody try again, in turn: what they need may be something else by now.

        Each by itself: each decides anew, and there may be many.
        """
        for ticket in tuple(self._waiting):
            ticket.woken.set()
            await asyncio.sleep(0)

    def wake(self) -> None:
        """Lets the first in the queue try again; where there is no room for that one, the first with another need."""
        if first := next((ticket for ticket in self._waiting if not ticket.aside), None):
            first.woken.set()


def _too_late() -> OverloadedError:
    return OverloadedError("there was no room in time; try again")
