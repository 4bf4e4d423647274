"""Conversations stay at their tier or get denser, over requests and over routers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio as redis
from sparsity_policies.decide import decide
from sparsity_policies.document import parse_policy
from sparsity_policies.model import Decision, Reason, Signals, Tier
from sparsity_router.sessions import Sessions
from support.fake_worker import FakeWorker
from support.rig import AGGRESSIVE, BANDS, DENSE, LONG, MODERATE, rig
from support.router import until
from support.snapshots import snapshot
from support.tiny import tiny_model
from support.valkey import Valkey

LOW = snapshot([parse_policy({"domain": "low", "risk": "low", "bands": BANDS})])


def decision(tokens: int, reason: Reason | None = None) -> Decision:
    made = decide(Signals(tokens, tokens, domain="low"), LOW)
    return replace(made, reason=reason) if reason else made


async def test_a_session_keeps_its_densest_tier() -> None:
    sessions = Sessions()
    assert await sessions.tier("t", "s") is None
    for tokens, tier in ((120, Tier.AGGRESSIVE), (60, Tier.MODERATE), (120, Tier.MODERATE), (1, Tier.DENSE)):
        sessions.served("t", "s", decision(tokens))
        assert await sessions.tier("t", "s") is tier
    assert await sessions.tier("other", "s") is None
    assert await sessions.tier("", "") is None


@pytest.mark.parametrize("reason", [Reason.KILL_SWITCH, Reason.STALE_POLICY, Reason.ROLLOUT_SPLIT])
async def test_what_passes_is_not_kept(reason: Reason) -> None:
    sessions = Sessions()
    await sessions.tier("t", "s")
    sessions.served("t", "s", decision(1, reason))
    assert await sessions.tier("t", "s") is None


async def test_routers_share_sessions_and_the_densest_stays() -> None:
    with Valkey() as server:
        clients = [redis.Redis.from_url(server.url, decode_responses=True) for _ in range(2)]
        first, second = (Sessions(client) for client in clients)
        writing = [asyncio.create_task(sessions.run()) for sessions in (first, second)]
        assert [await sessions.tier("t", "s") for sessions in (first, second)] == [None, None]
        first.served("t", "s", decision(60))
        second.served("t", "s", decision(120))

        async def read() -> Tier | None:
            return await Sessions(clients[0]).tier("t", "s")

        async def densest() -> bool:
            return await read() is Tier.MODERATE

        await until(densest)
        await asyncio.sleep(0.3)
        assert await read() is Tier.MODERATE
        for task in writing:
            task.cancel()
        for client in clients:
            await client.aclose()


async def test_without_the_store_a_router_knows_its_own() -> None:
    with Valkey() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=0.2)
        sessions = Sessions(client)
    assert await sessions.tier("t", "s") is None
    sessions.served("t", "s", decision(60))
    assert await sessions.tier("t", "s") is Tier.MODERATE
    await client.aclose()


async def test_a_conversation_over_the_wire(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    workers = [FakeWorker(name, tier, model) for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))]
    async with rig(model, *workers, sessions=Sessions()) as r:
        served = []
        for prompt, session in ((LONG, "one"), ("y" * 60, "one"), (LONG, "one"), (LONG, "two"), (LONG, None)):
            served.append((await r.generate(prompt, session=session))[1])
        assert [completion.worker_id for completion in served] == ["a", "m", "m", "a", "a"]
        assert served[2].decision.matched_rule == "session"
