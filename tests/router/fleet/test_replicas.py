"""What other routers tell of themselves by way of the store, and what only looks like it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from sparsity_router.fleet.replicas import Replica, Replicas

OTHER = asdict(Replica("other", "10.0.0.1:7000", 3, "abc", 0.5, 0.0, 100.0, ("a problem",)))


class Following:
    """A follower that knows of nothing."""

    snapshot: Any = type("Snapshot", (), {"revision": 1, "content_hash": "", "rejected": ("a", "b")})
    age = lag = 0.0
    unsaved = ""

    def now(self) -> float:
        return 100.0


class Store:
    """Holds one router's word."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def hgetall(self, key: str) -> dict[str, str]:
        return {"other": self._text}


async def heard(text: str) -> list[Replica]:
    replicas = Replicas(Following(), Store(text))
    return [replica for replica in await replicas.all() if replica.router_id != replicas.router_id]


def test_documents_that_are_left_out_are_told() -> None:
    assert Replicas(Following()).own().problems == (
        "policies cannot be read or taken up, as the router's log says: a, b",
    )


async def test_another_router_is_heard() -> None:
    assert [replace(found, problems=()) for found in await heard(json.dumps(OTHER))] == [
        Replica(**OTHER | {"problems": ()})
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"heard": "now"}, {"heard": None}, {"heard": float("nan")}, {"router_id": ["other"]}, {"router_id": 7},
        {"policy_age": float("inf")}, {"revision": -1}, {"revision": "3"}, {"problems": [1]}, {"problems": None},
        {"another": 1}, {"revision": 1.5}, {"revision": float("inf")}, {"address": "\ud800"}, {"problems": ["\ud800"]},
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_passed_over(wrong: dict[str, Any]) -> None:
    assert await heard(json.dumps(OTHER | wrong)) == []


@pytest.mark.parametrize("text", ["", "[1]", "3", "null", "{", "[" * 100_000])
async def test_what_is_no_router_is_passed_over(text: str) -> None:
    assert await heard(text) == []


class Answering(Store):
    """Answers each command when the test says so."""

    def __init__(self) -> None:
        super().__init__("")
        self.asked, self.answered = asyncio.Event(), asyncio.Event()

    async def hset(self, *arguments: str) -> None:
        self.asked.set()
        await self.answered.wait()

    async def hkeys(self, key: str) -> list[str]:
        return []

    async def hdel(self, *arguments: str) -> None:
        """Has gone."""


@pytest.mark.parametrize("steps", range(5))
async def test_who_is_ended_as_the_store_answers_ends(steps: int) -> None:
    store = Answering()
    task = asyncio.create_task(Replicas(Following(), store).run())
    await store.asked.wait()
    store.answered.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    assert await asyncio.wait({task}, timeout=1.5) == ({task}, set())
