"""A server of their own for tests of what is kept in it, and the policies' store there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sparsity_policies.storage.store import PolicyStore
from support.stores.valkey import Valkey


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest_asyncio.fixture
async def store(server: Valkey) -> AsyncIterator[PolicyStore]:
    store = PolicyStore(server.url)
    yield store
    await store.close()
