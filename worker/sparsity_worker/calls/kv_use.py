"""How much of the KV cache is held: one question to the engine, however many routers wait for its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sparsity_worker.calls.load import SPACING_SECONDS, Load


class KvUse:
    """Answers that are shared.

    Args:
        ask: the engine's own count, tokens.
        load: whose changes make an answer old, and which keeps the last one.
    """

    def __init__(self, ask: Callable[[], Awaitable[int]], load: Load) -> None:
        self._ask = ask
        self._load = load
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def read(self, seconds: float) -> int:
        """What was asked after the load's last change, ``seconds`` ago at most."""
        since = max(self._load.changed_at, time.monotonic() - seconds)
        while self._asked_at < since or self._asking is None or not self._asking.done():
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._put_question())
            # Whoever leaves must not take it from the others.
            await asyncio.shield(self._asking)
        return self._load.kv_used_tokens

    async def _put_question(self) -> None:
        await asyncio.sleep(max(self._asked_at + SPACING_SECONDS - time.monotonic(), 0.0))
        self._asked_at = time.monotonic()
        self._load.kv_used_tokens = await self._ask()
