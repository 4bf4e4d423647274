"""Conversations stay at their tier or get denser, over requests and over routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio as redis
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.rollout import Action, move
from sparsity_policies.documents.document import parse_policy
from sparsity_policies.model import TTL_SECONDS, Decision, Override, Reason, Rollout, Scope, Signals, Tier
from sparsity_router.decisions import sessions as sessions_
from sparsity_router.decisions.sessions import Sessions, _key
from sparsity_serving.background.ending import end_tasks
from support.routers.rig import AGGRESSIVE, BANDS, DENSE, LONG, MODERATE, rig
from support.routers.router import until
from support.stores.snapshots import snapshot
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, fail

RULES = [
    {"name": task, "when": f"task == '{task}'", "tier": tier}
    for task, tier in (("records", "moderate"), ("wills", "dense"))
]
LOW = snapshot([parse_policy({"domain": "low", "risk": "low", "bands": BANDS, "rules": RULES})])

BEGUN = Rollout((1, 100), held_back=Tier.DENSE)
SPLIT = snapshot([move(LOW.policies["low"].policy, Action.START, BEGUN)])
KILLED = LOW.with_overrides([Override("k", Scope.GLOBAL, "", reason="test")])


def decision(tokens: int, at: Any = LOW, **signals: Any) -> Decision:
    return decide(Signals(tokens, tokens, domain="low", **signals), at)


async def tier(sessions: Sessions) -> Tier | None:
    return (await sessions.tier("t", "s")).tier


async def test_a_session_keeps_its_densest_tier() -> None:
    sessions = Sessions()
    assert await tier(sessions) is None
    given = (("", Tier.AGGRESSIVE), ("records", Tier.MODERATE), ("", Tier.MODERATE), ("wills", Tier.DENSE))
    for task, densest in given:
        sessions.served("t", "s", decision(120, task=task))
        assert await tier(sessions) is densest
    assert await sessions.tier("other", "s") == (None, "")
    assert await sessions.tier("", "") == (None, "")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (decision(120, KILLED, task="records"), Reason.KILL_SWITCH),
        (decision(120, SPLIT, task="records"), Reason.ROLLOUT_SPLIT),
        (decision(120, task="records", max_tier=Tier.DENSE), Reason.CALLER_REQUESTED),
    ],
)
async def test_what_passes_is_not_kept_and_what_policy_gave_behind_it_is(made: Decision, reason: Reason) -> None:
    sessions = Sessions()
    await tier(sessions)
    sessions.served("t", "s", made)
    assert (made.tier, made.reason) == (Tier.DENSE, reason)
    assert await tier(sessions) is Tier.MODERATE


@pytest.mark.parametrize(
    "doubt", [{"policy_age": 1e6}, {"classifier_error": "no answer"}, {"prompt_bytes": 2, "scanned_bytes": 1}]
)
async def test_a_doubt_that_passes_tells_nothing_of_a_session(doubt: dict[str, Any]) -> None:
    sessions = Sessions()
    await tier(sessions)
    sessions.served("t", "s", decision(1, **doubt))
    assert await tier(sessions) is None


async def test_the_declared_policy_lasts_behind_the_rollout_of_a_riskier_one() -> None:
    policies = [replace(SPLIT.policies["low"].policy, domain="found"), LOW.policies["low"].policy]
    made = decide(Signals(120, 120, domain="found", declared="low", task="records"), snapshot(policies))
    assert (made.tier, made.reason, made.lasting) == (Tier.DENSE, Reason.ROLLOUT_SPLIT, Tier.MODERATE)


@pytest.mark.parametrize(
    ("tiers", "tokens", "lasting"),
    [
        (["dense", "moderate", "aggressive"], 1, Tier.AGGRESSIVE),
        (["dense", "moderate", "aggressive"], 120, Tier.AGGRESSIVE),
        (["dense", "dense", "moderate"], 60, Tier.MODERATE),
        (["dense", "moderate", "dense"], 1, Tier.MODERATE),
        (["aggressive", "moderate", "dense"], 60, Tier.MODERATE),
        (["dense", "dense", "dense"], 1, Tier.DENSE),
    ],
)
def test_of_a_length_what_longer_prompts_may_get_lasts(tiers: list[str], tokens: int, lasting: Tier) -> None:
    bands = [{"from_tokens": start, "tier": tier} for start, tier in zip((0, 50, 100), tiers, strict=True)]
    at = snapshot([parse_policy({"domain": "low", "risk": "low", "bands": bands})])
    assert decision(tokens, at).lasting is lasting
    # Nor does the declared domain's length last behind a riskier one's.
    policies = [at.policies["low"].policy, replace(at.policies["low"].policy, domain="found")]
    assert decide(Signals(tokens, tokens, domain="found", declared="low"), snapshot(policies)).lasting is lasting


@pytest.mark.parametrize(("risk", "lasting"), [("low", Tier.MODERATE), ("elevated", Tier.DENSE)])
def test_of_a_risk_that_was_found_the_band_itself_lasts(risk: str, lasting: Tier) -> None:
    found = parse_policy({"domain": "found", "risk": risk, "bands": BANDS[:2]})
    at = snapshot([found, LOW.policies["low"].policy])
    for declared in ("", "low"):
        made = decide(Signals(1, 1, domain="found", declared=declared, detected=True), at)
        assert (made.tier, made.lasting) == (Tier.DENSE, lasting)
    assert decide(Signals(1, 1, domain="found"), at).lasting is Tier.MODERATE


async def test_routers_share_sessions_and_the_densest_stays() -> None:
    with Valkey() as server:
        clients = [redis.Redis.from_url(server.url, decode_responses=True) for _ in range(2)]
        first, second = (Sessions(client) for client in clients)
        writing = [asyncio.create_task(sessions.run()) for sessions in (first, second)]
        assert [await tier(sessions) for sessions in (first, second)] == [None, None]
        first.served("t", "s", decision(120, task="records"))
        second.served("t", "s", decision(120))

        async def read() -> Tier | None:
            return await tier(Sessions(clients[0]))

        async def densest() -> bool:
            return await read() is Tier.MODERATE

        await until(densest)
        await asyncio.sleep(0.3)
        assert await read() is Tier.MODERATE
        for task in writing:
            task.cancel()
        for client in clients:
            await client.aclose()


async def test_what_was_noted_last_is_written_at_the_end_and_what_others_crowd_out_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_, "_HELD", 2)
    with Valkey() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        first = Sessions(client)
        running = asyncio.create_task(first.run())
        assert await tier(first) is None
        for other in ("a", "b"):
            await first.tier("t", other)
        first.served("t", "s", decision(120, task="records"))
        assert first.held("t", "s") is Tier.MODERATE
        await end_tasks([running])
        assert await first.flush()
        assert await client.get(_key("t", "s")) == str(int(Tier.MODERATE))
        await client.aclose()


class Server:
    """A store that answers when told to, and counts what it is asked."""

    def __init__(self, value: str | None = None) -> None:
        self.value = value
        self.asked = 0
        self.open = asyncio.Event()

    async def get(self, key: str) -> str | None:
        self.asked += 1
        await self.open.wait()
        return self.value


async def test_requests_that_come_at_once_share_one_answer() -> None:
    server = Server("1")
    sessions = Sessions(server)
    asked = [asyncio.create_task(tier(sessions)) for _ in range(3)]
    await asyncio.sleep(0)
    asked[0].cancel()
    server.open.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert (found[1:], server.asked) == ([Tier.DENSE] * 2, 1)


@pytest.mark.parametrize("ttl", [TTL_SECONDS, 40.0, 3000.0])
async def test_what_the_store_cannot_tell_is_in_doubt(ttl: float) -> None:
    with Valkey() as server:
        client = redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=0.2)
        sessions = Sessions(client, ttl)
        # A first connection may take longer than sessions wait for.
        await client.ping()
        assert await sessions.tier("t", "read before") == (None, "")
    sessions._known[_key("t", "read before")].read_at -= ttl - 20
    assert await sessions.tier("t", "read before") == (None, "")
    sessions._known[_key("t", "read before")].read_at -= 40
    for session in ("s", "read before"):
        found = await sessions.tier("t", session)
        assert found.problem.startswith("what the session's earlier requests got cannot be known: ")
    sessions.served("t", "s", decision(120, task="records"))
    assert (await sessions.tier("t", "s")).tier is Tier.MODERATE
    await client.aclose()


async def test_an_unknown_session_goes_dense_until_the_store_answers(tmp_path: Path) -> None:
    model, server = tiny_model(tmp_path), Server()
    workers = [FakeWorker("d", DENSE, model), FakeWorker("a", AGGRESSIVE, model)]
    async with rig(model, *workers, sessions=Sessions(server)) as r:
        _, completion = await r.generate(LONG, session="s")
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_CLASSIFIER_FAILED)
        assert (await r.generate(LONG))[1].worker_id == "a"
        server.open.set()
        assert (await r.generate(LONG, session="s"))[1].worker_id == "a"


async def test_what_a_session_gets_meanwhile_counts_at_the_next_attempt(tmp_path: Path) -> None:
    model, sessions = tiny_model(tmp_path), Sessions()

    async def slow(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        sessions.served("", "s", decision(1, task="wills"))
        async for response in fail(grpc.StatusCode.INTERNAL)(worker, request, context):
            yield response

    first, peer = FakeWorker("a1", AGGRESSIVE, model, behaviour=slow), FakeWorker("a2", AGGRESSIVE, model)
    peer.outstanding = 10**6
    async with rig(model, FakeWorker("d", DENSE, model), first, peer, sessions=sessions) as r:
        _, completion = await r.generate(LONG, session="s")
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_SESSION)


async def test_what_a_review_makes_of_a_request_is_kept(tmp_path: Path) -> None:
    model, sessions = tiny_model(tmp_path), Sessions()
    strict = snapshot([parse_policy({"domain": "low", "risk": "low", "bands": BANDS[:1]})])
    held: list[Any] = []

    async def slow(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        held[0].policies.snapshot = strict
        async for response in fail(grpc.StatusCode.INTERNAL)(worker, request, context):
            yield response

    first, second = FakeWorker("a1", AGGRESSIVE, model, behaviour=slow), FakeWorker("a2", AGGRESSIVE, model)
    second.outstanding = 10**6
    async with rig(model, FakeWorker("d", DENSE, model), first, second, sessions=sessions) as r:
        held.append(r)
        assert (await r.generate(LONG, session="s"))[1].worker_id == "d"
        assert sessions.held("", "s") is Tier.DENSE
        # What policy loosens later gives the conversation no less attention.
        r.policies.snapshot = LOW
        assert (await r.generate(LONG, session="s"))[1].worker_id == "d"


async def test_a_turn_that_asked_for_more_attention_holds_back_none_of_its_text(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    workers = [FakeWorker(name, tier, model) for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))]
    async with rig(model, *workers, sessions=Sessions()) as r:
        turns = (("y" * 60, DENSE), (LONG, None))
        found = [(await r.generate(prompt, session="s", max_tier=most))[1] for prompt, most in turns]
        assert [completion.worker_id for completion in found] == ["d", "a"]


async def test_a_conversation_over_the_wire(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    workers = [FakeWorker(name, tier, model) for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))]
    async with rig(model, *workers, sessions=Sessions()) as r:
        r.policies.snapshot, served = LOW, []
        for task, session in (("", "one"), ("records", "one"), ("", "one"), ("", "two"), ("", None)):
            served.append((await r.generate(session=session, task=task))[1])
        assert [completion.worker_id for completion in served] == ["a", "m", "m", "a", "a"]
        assert served[2].decision.matched_rule == "session"


async def test_a_conversation_that_grows_gets_what_its_length_is_given(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    workers = [FakeWorker(name, tier, model) for name, tier in (("d", DENSE), ("m", MODERATE), ("a", AGGRESSIVE))]
    async with rig(model, *workers, sessions=Sessions()) as r:
        turns = [(await r.generate("y" * length, session="s"))[1] for length in (10, 60, 120, 60)]
        assert [turn.worker_id for turn in turns] == ["d", "m", "a", "m"]
