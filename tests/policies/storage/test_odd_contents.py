"""Whatever stands in the store, it is told or left out, and what else is there is read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, open_policy, seal_override, seal_policy
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.decisionlog import DecisionLog, Replayed
from sparsity_policies.storage.store import PolicyStore
from sparsity_policies.wire import override_to_wire, stored_to_wire
from sparsity_rpc.errors import NotFoundError
from support.stores.snapshots import stored

POLICY = shipped_policies("small-context")[0]
DEEP, HUGE = "[" * 100_000, "9" * 400
# As they stand in JSON; the last seconds that a message can tell are those of the year 9999.
ODD_TIMES = [HUGE, "1e400", "-1e400", "NaN", "1e300", "-1e18", "253402300800", '"inf"', '"1e400"']
ODD_REVISIONS = ["1e400", "-1", str(2**64), "NaN", HUGE]


def with_field(sealed: str, field: str, value: str) -> str:
    """A sealed document in whose place of ``field`` stands ``value``, as it is."""
    return json.dumps(json.loads(sealed) | {field: "HERE"}).replace('"HERE"', value)


OVERRIDE = seal_override(Override("o", Scope.DOMAIN, "rag", expire_time=1e9))
ODD_OVERRIDES = [
    *(with_field(OVERRIDE, "expire_time", value) for value in ODD_TIMES),
    *(with_field(OVERRIDE, "revision", value) for value in ODD_REVISIONS),
    *(DEEP, with_field(OVERRIDE, "target", DEEP), "[]", "3", "null"),
]
SEALED = seal_policy(stored(POLICY))
ODD_POLICIES = [
    *(with_field(SEALED, "time", value) for value in ODD_TIMES),
    *(with_field(SEALED, "revision", value) for value in ODD_REVISIONS),
    *(DEEP, with_field(SEALED, "body", json.dumps(DEEP)), "[]", "3", "null"),
]


@pytest.mark.parametrize("body", ODD_OVERRIDES, ids=range(len(ODD_OVERRIDES)))
def test_an_odd_override_is_held_as_a_kill_switch(body: str) -> None:
    found, rejected = open_overrides({"o": body})
    assert [(one.id, one.scope) for one in found] == [("o", Scope.GLOBAL)]
    assert list(rejected) == ["override o"]
    override_to_wire(found[0])


@pytest.mark.parametrize("envelope", ODD_POLICIES, ids=range(len(ODD_POLICIES)))
def test_an_odd_policy_is_told(envelope: str) -> None:
    with pytest.raises(UNREADABLE):
        open_policy(envelope, POLICY.domain)


@pytest.mark.parametrize("time", [0.0, -1.5, 253402300799.0, math.pi])
def test_every_time_that_is_read_can_be_told(time: float) -> None:
    read = open_policy(with_field(SEALED, "time", repr(time)), POLICY.domain)
    assert stored_to_wire(read).update_time.ToNanoseconds() == int(time * 1e9)
    (override,), _ = open_overrides({"o": with_field(OVERRIDE, "expire_time", repr(time))})
    assert override_to_wire(override).expire_time.ToNanoseconds() == int(time * 1e9)


async def test_odd_contents_keep_nothing_else_from_being_read(store: PolicyStore) -> None:
    await store.put(POLICY, etag="", actor="ann", reason="new")
    cursor = (await store.read()).cursor
    client: Any = store.redis
    for number, envelope in enumerate(ODD_POLICIES):
        await client.hset("{sparsity}:policies", f"odd-{number}", envelope)
    for number, body in enumerate(ODD_OVERRIDES):
        await client.hset("{sparsity}:overrides", f"odd-{number}", body)
    contents = await store.read()
    assert [one.policy for one in contents.policies] == [POLICY]
    assert len(contents.rejected) == len(ODD_POLICIES) + len(ODD_OVERRIDES)
    delta = await store.delta(cursor)
    assert delta is not None
    assert len(delta.overrides) == len(ODD_OVERRIDES)


async def test_odd_entries_of_the_decision_log_are_left_out(store: PolicyStore) -> None:
    decisions, client = DecisionLog(store.redis), store.redis
    odd = [DEEP, HUGE, "null", "[]", '{"signals": 1e400}']
    for entry in odd:
        with pytest.raises(ValueError, match="decision log entry"):
            Entry.from_json(entry)
        await client.xadd("{sparsity}:decisions", {"entry": entry})
    assert [each async for each in decisions.replay(60.0)] == [Replayed(None)] * len(odd)


async def test_odd_outcomes_are_left_out(store: PolicyStore) -> None:
    decisions, client = DecisionLog(store.redis), store.redis
    place, _ = await decisions.outcomes("$", 0.01)
    whole = {"decision_id": "d", "domain": "rag", "tier": "2", "arm": "", "metric": "m", "score": "0.5"}
    for odd in ({"tier": "1e400"}, {"tier": HUGE}, {"score": "nan"}, {"score": "inf"}, {"score": "-1"}, {}):
        await client.xadd("{sparsity}:outcomes", whole | odd)
    assert [outcome.score for outcome in (await decisions.outcomes(place, 0.01))[1]] == [0.5]


async def test_an_audit_event_of_an_odd_time_is_told_at_the_time_it_was_written(store: PolicyStore) -> None:
    decisions, client = DecisionLog(store.redis), store.redis
    for odd in ("1e400", "nan", "-1e300", HUGE, "x"):
        await client.xadd("{sparsity}:audit", {"time": odd})
    events, _ = await decisions.audit()
    assert len(events) == 5
    assert all(1e9 < event.time < 1e10 for event in events)


async def test_an_outcome_of_a_decision_that_cannot_be_read_is_refused(store: PolicyStore) -> None:
    decisions, client = DecisionLog(store.redis), store.redis
    for odd in (DEEP, "3", "[]", '["rag", 1e400, ""]', '["rag", 9, ""]', "x", "[1, 2]"):
        await client.set("{sparsity}:decision:d", odd)
        with pytest.raises(NotFoundError, match="cannot be read"):
            await decisions.report("d", "m", 0.5)
