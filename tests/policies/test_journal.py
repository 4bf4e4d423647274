from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from sparsity_policies.decisions.journal import Entry, Outcome, is_sampled
from sparsity_policies.model import Reason, Signals, Tier
from sparsity_policies.storage.decisionlog import AuditEvent, DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import InvalidRequestError, NotFoundError, StoreError
from support.stores.valkey import Valkey

TEXT = st.text(max_size=8)
SIGNALS = st.builds(
    Signals,
    min_tokens=st.integers(0, 9),
    max_tokens=st.integers(9, 99),
    domain=TEXT,
    flags=st.frozensets(TEXT),
    labels=st.dictionaries(TEXT, TEXT).map(lambda found: tuple(sorted(found.items()))),
    session=TEXT,
    max_tier=st.none() | st.sampled_from(Tier),
    received_at=st.floats(0, 1e10),
    also=st.lists(TEXT).map(tuple),
)
ENTRIES = st.builds(
    Entry,
    time=st.floats(0, 1e10),
    decision_id=TEXT,
    signals=SIGNALS,
    policy=TEXT,
    policy_revision=st.integers(0, 9),
    policy_tier=st.sampled_from(Tier),
    reason=st.sampled_from(Reason),
    served_tier=st.none() | st.sampled_from(Tier),
    coverage=st.floats(0, 1),
)


def entry(decision_id: str, tier: Tier = Tier.AGGRESSIVE) -> Entry:
    signals = Signals(6000, 6000, domain="rag")
    return Entry(1.0, decision_id, signals, "rag", 3, tier, Reason.LENGTH_BAND, served_tier=tier, arm="rolled_out")


@given(found=ENTRIES)
def test_entries_survive_their_line(found: Entry) -> None:
    assert Entry.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"signals": 3}', '{"signals": {}}'])
def test_other_lines_are_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"entry|Expecting"):
        Entry.from_json(text)


def test_sampling_is_a_fixed_share_of_the_ids() -> None:
    kept = sum(is_sampled(f"{number}", 0.1) for number in range(20_000))
    assert 1800 < kept < 2200
    assert is_sampled("x", 1.0)
    assert not is_sampled("x", 0.0)


@pytest_asyncio.fixture
async def log() -> AsyncIterator[DecisionLog]:
    with Valkey() as server:
        store = PolicyStore(server.url)
        yield DecisionLog(store.redis)
        await store.close()


async def test_the_log_is_replayed_in_order_and_garbage_is_told(log: DecisionLog) -> None:
    await log.append([entry(f"{number}") for number in range(2500)])
    await log._redis.xadd("{sparsity}:decisions", {"entry": "garbage"})
    await log._redis.xadd("{sparsity}:decisions", {"other": "field"})
    found = [replayed.entry async for replayed in log.replay(3600)]
    assert [one.decision_id for one in found[:2500] if one] == [f"{number}" for number in range(2500)]
    assert found[2500:] == [None, None]


async def test_the_log_is_capped() -> None:
    with Valkey() as server:
        store = PolicyStore(server.url)
        log = DecisionLog(store.redis, kept=500)
        for _ in range(10):
            await log.append([entry("x")] * 500)
        assert 500 <= await store.redis.xlen("{sparsity}:decisions") < 1000
        await store.close()


async def test_outcomes_join_their_decision(log: DecisionLog) -> None:
    await log.append([entry("one")])
    place, found = await log.outcomes("$", 0.01)
    assert found == []
    reported = await log.report("one", "exact_match", 0.5, (("a", "b"),))
    assert reported == Outcome("one", "rag", Tier.AGGRESSIVE, "rolled_out", "exact_match", 0.5, (("a", "b"),))
    place, found = await log.outcomes(place, 1.0)
    assert [(one.domain, one.arm, one.score) for one in found] == [("rag", "rolled_out", 0.5)]
    await log._redis.xadd("{sparsity}:outcomes", {"tier": "9", "score": "x"})
    assert (await log.outcomes(place, 0.01))[1] == []
    with pytest.raises(NotFoundError, match="not in the decision log"):
        await log.report("two", "exact_match", 0.5)


async def test_a_tenants_decision_is_unknown_to_every_other(log: DecisionLog) -> None:
    one = entry("one")
    theirs = replace(one, signals=replace(one.signals, tenant="acme"))
    await log.append([theirs, entry("nobodys")])

    async def refusal(decision_id: str, tenant: str) -> str:
        with pytest.raises(NotFoundError) as caught:
            await log.report(decision_id, "m", 0.5, tenant=tenant)
        return str(caught.value)

    never = await refusal("never", "other")
    for decision_id, tenant in (("one", "other"), ("nobodys", "other")):
        assert await refusal(decision_id, tenant) == never.replace("never", decision_id)
    assert (await log.outcomes("0-0", 0.01))[1] == []
    # Its own, and those who report for any tenant, are let in.
    for decision_id, tenant in (("one", "acme"), ("one", ""), ("nobodys", "")):
        assert (await log.report(decision_id, "m", 0.5, tenant=tenant)).decision_id == decision_id


async def test_a_decision_has_one_outcome_a_metric(log: DecisionLog) -> None:
    await log.append([entry("one"), entry("two")])
    for score in (0.5, 0.1, 0.9):
        await asyncio.gather(*(log.report("one", "exact_match", score) for _ in range(20)))
    await log.report("two", "exact_match", 0.7)
    for number in range(63):
        await log.report("one", f"m{number}", 1.0)
    _, found = await log.outcomes("0-0", 0.01)
    assert [(one.decision_id, one.score) for one in found if one.metric == "exact_match"] == [
        ("one", 0.5),
        ("two", 0.7),
    ]
    assert len(found) == 65
    with pytest.raises(InvalidRequestError, match="metric: is one more than the 64"):
        await log.report("one", "another", 1.0)
    # What is there already is no further one.
    await log.report("one", "m3", 0.0)
    assert 0 < await log._redis.ttl("{sparsity}:metrics:one") <= 3600


async def test_audit_events_are_paged_newest_first(log: DecisionLog) -> None:
    events = [AuditEvent("ann", "ipv4:1", "PutPolicy", f"d{number}", "why", "OK") for number in range(25)]
    await log.append([], events)
    first, token = await log.audit(count=10)
    second, token = await log.audit(token, 10)
    third, end = await log.audit(token, 10)
    assert [one.target for one in (*first, *second, *third)] == [f"d{number}" for number in reversed(range(25))]
    assert end == ""
    assert first[0].time > 1e9


async def test_an_absent_server_is_a_store_error() -> None:
    store = PolicyStore("redis://127.0.0.1:1/0")
    with pytest.raises(StoreError):
        await DecisionLog(store.redis).append([entry("x")])
    with pytest.raises(StoreError):
        await DecisionLog(store.redis).outcomes("$", 0.1)


def test_no_entry_has_room_for_the_prompt() -> None:
    assert not {"prompt", "text", "messages"} & set(json.loads(entry("x").to_json())["signals"])
