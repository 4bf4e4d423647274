"""Stores that lose overrides, and reads of them, as a router takes them up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import redis
from sparsity_policies.model import Override
from sparsity_policies.storage.contents import Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.following.known import Read
from sparsity_router.following.overrides import Overrides
from support.stores.valkey import Valkey

ENDED, LOST = Word(None, is_later=True), Word(None, is_later=False)


def read(
    overrides: Overrides,
    there: Iterable[Override],
    revision: int,
    word: Word | None = None,
    began: float = float("-inf"),
) -> None:
    """Takes up that a store held these at a revision; its word is asked for whatever is doubtful."""
    held = Read(list(there), revision, "", began)
    overrides.stored(held, dict.fromkeys(overrides._known.doubtful(held, overrides._now()), word))


class Place:
    """A store that can be set back, as a failover to an older replica does."""

    def __init__(self, server: Valkey) -> None:
        self.server, self.store = server, PolicyStore(server.url)
        self.raw = redis.Redis(port=server.port)

    def state(self) -> dict[Any, Any]:
        found: Any = self.raw.keys()
        return {key: self.raw.dump(key) for key in found}

    def become(self, state: dict[Any, Any]) -> None:
        self.raw.flushall()
        for key, value in state.items():
            self.raw.restore(key, 0, value)

    async def read(self, overrides: Overrides, source: Any = None) -> None:
        began = time.monotonic()
        contents = await self.store.read()
        found = Read(contents.overrides, contents.overrides_at, contents.overrides_event, began)
        await overrides.take_up(found, source or self.store)

    async def holds(self) -> list[Override]:
        return (await self.store.read()).overrides
