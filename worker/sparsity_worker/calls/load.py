"""How busy the worker is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import DrainingError, InvalidRequestError, OverloadedError

# Reports are no closer: every router pays for each, and under load one tells of many changes.
SPACING_SECONDS = 0.02


class Held(NamedTuple):
    """What a request in flight holds.

    Attributes:
        tokens: of its prompt, and that it may still generate.
        tier: that it is served at.
    """

    tokens: int
    tier: inference_pb2.Tier.ValueType = inference_pb2.TIER_DENSE


@dataclass(slots=True)
class Load:
    """Requests in flight, counted at the worker's door.

    Attributes:
        limit: requests accepted at once.
        kv_used_tokens: KV slots that live requests held when the engine was last asked.
        changed_at: when a request last came or went, on the monotonic clock.
    """

    limit: int
    requests: dict[str, Held] = field(default_factory=dict)
    finished: int = 0
    aborted_by_tier: Counter[inference_pb2.Tier.ValueType] = field(default_factory=Counter)
    draining: bool = False
    kv_used_tokens: int = 0
    changed_at: float = float("-inf")
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and still possible new tokens of all requests."""
        return sum(held.tokens for held in self.requests.values())

    @property
    def aborted(self) -> int:
        """Requests that were cancelled or failed."""
        return self.aborted_by_tier.total()

    def at(self, tier: inference_pb2.Tier.ValueType) -> tuple[int, int]:
        """Requests in flight at one tier, and their tokens."""
        tokens = [held.tokens for held in self.requests.values() if held.tier == tier]
        return len(tokens), sum(tokens)

    def require_room(self) -> None:
        """Checks that one more request would be admitted now.

        Raises:
            DrainingError: while draining.
            OverloadedError: when full.
        """
        if self.draining:
            raise DrainingError("the worker is draining")
        if len(self.requests) >= self.limit:
            raise OverloadedError(f"the worker holds its {self.limit} requests")

    @contextmanager
    def admit(
        self, rid: str, tokens: int, tier: inference_pb2.Tier.ValueType = inference_pb2.TIER_DENSE
    ) -> Iterator[None]:
        """Holds a place for a request.

        Raises:
            DrainingError: while draining.
            OverloadedError: when full.
            InvalidRequestError: when the id is in flight already.
        """
        self.require_room()
        if rid in self.requests:
            raise InvalidRequestError.of(
                "request_id", f"{rid} is in flight already; ids are unique among live requests"
            )
        self.requests[rid] = Held(tokens, tier)
        self._notify()
        ended = False
        try:
            yield
            ended = True
        finally:
            del self.requests[rid]
            self.finished += ended
            self.aborted_by_tier[tier] += not ended
            self._notify()

    def drain(self) -> None:
        """Admits no more."""
        self.draining = True
        self._notify()

    def _notify(self) -> None:
        self.changed_at = time.monotonic()
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields at once, then at changes, but not too often, and at least every ``interval`` seconds."""
        while True:
            changed, next_at = self._changed, time.monotonic() + SPACING_SECONDS
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await changed.wait()
            await asyncio.sleep(max(next_at - time.monotonic(), 0.0))

    async def idle(self, timeout: float | None) -> bool:
        """Waits until nothing is in flight; False when ``timeout`` seconds passed first."""
        try:
            async with asyncio.timeout(timeout):
                async for _ in self.changes(1.0):
                    if not self.requests:
                        return True
        except TimeoutError:
            pass
        return False
