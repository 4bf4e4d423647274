from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from support.routers.overrides import Place
from support.stores.valkey import Valkey


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
async def place(server: Valkey) -> AsyncIterator[Place]:
    place = Place(server)
    place.become({})
    yield place
    await place.store.close()
