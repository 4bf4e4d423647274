"""Exemplars of a policy are learnt by the router that serves: the next request's decision hangs on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_client.wire import make_request
from sparsity_policies.risk.corpus import RISKY
from sparsity_router.config import RouterConfig
from support.routers.router import Router, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model

EXEMPLARS = [
    "Torque sequence for the turbine casing bolts after the outage",
    "The reactor coolant pump tripped on low oil pressure at 03:12",
    "Which interlock keeps the control rods from being withdrawn?",
    "Neutron flux was above the setpoint during start-up of unit two",
    "Leak rate of the primary containment, last surveillance test",
    "Lock out the emergency diesel generator before the fuel transfer",
    "Steam generator tube inspection: eddy current indications in row nine",
    "Operators bypassed the scram logic for the calibration",
    "Boron concentration of the refuelling water tank is below the limit",
    "Procedure for a stuck relief valve on the pressuriser",
    "Spent fuel pool temperature rises two degrees an hour",
    "Dosimeter readings of the crew that entered the containment",
    "Turbine trip without reactor trip: expected behaviour of the bypass valves",
    "Acceptance criteria for the emergency core cooling injection test",
    "Feedwater heater drain valve stuck closed, condensate level high",
    "Switchyard maintenance while one offsite power line is unavailable",
    "Radiation monitor in the auxiliary building stack alarms twice a day",
    "Cable fire in the relay room, which safety trains are affected?",
    "Shift log: axial power tilt corrected by rod group four",
    "Seismic qualification of the replacement battery racks",
]
ASKED = "During start-up the reactor coolant pump tripped and the control rods were withdrawn past the setpoint."
PLAIN = "The bakery opens at seven. On Saturdays there is rye bread, and the queue goes round the corner. "


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    with Valkey() as server:
        config = RouterConfig(tiny_model(tmp_path), ("127.0.0.1:1",), server.url, "127.0.0.1:0")
        async with running(config) as router:
            yield router


async def explained(router: Router, text: str, domain: str | None = "rag") -> Any:
    request = make_request(text, domain=domain)
    return await router.inference.Explain(inference_pb2.ExplainRequest(request=request))


def plant(mode: str = "act") -> policy_pb2.Policy:
    policy = policy_pb2.Policy(domain="plant", risk=policy_pb2.RISK_HIGH)
    policy.bands.add(from_tokens=0, tier=inference_pb2.TIER_DENSE)
    policy.detection.exemplars.extend(EXEMPLARS)
    policy.detection.mode = mode
    return policy


async def put(router: Router, policy: policy_pb2.Policy, etag: str = "") -> Any:
    request = policy_pb2.PutPolicyRequest(policy=policy, reason="learn it", etag=etag)
    return (await router.policy.PutPolicy(request)).policy


async def act(router: Router, *domains: str) -> None:
    """Has the domains act on what texts are like."""
    for domain in domains:
        stored = await router.get(domain)
        stored.policy.detection.mode = "act"
        await put(router, stored.policy, stored.etag)


async def test_without_a_mode_no_text_is_weighed(router: Router) -> None:
    sick = PLAIN + "The patient was given heparin and aspirin for chest pain with raised troponin. "
    found = await explained(router, sick)
    assert found.signals.domain == "rag"
    assert not found.findings


async def test_twenty_exemplars_of_another_domain_change_the_next_decision(router: Router) -> None:
    text = PLAIN + ASKED + PLAIN
    before = await explained(router, text)
    assert (before.signals.domain, before.signals.declared_domain) == ("rag", "")
    stored = await put(router, plant())

    async def learnt() -> Any:
        answer = await explained(router, text)
        return answer if "plant" in {finding.domain for finding in answer.findings} else None

    # Learning takes a second of processor time, and an edit is answered after a moment at most.
    moved = await until(learnt, 60.0)
    assert (moved.signals.domain, moved.signals.declared_domain) == ("plant", "rag")
    assert moved.decision.tier == inference_pb2.TIER_DENSE
    finding = moved.findings[0]
    assert (finding.domain, finding.outcome) == ("plant", "moved")
    assert finding.probability >= finding.threshold
    assert finding.start < len(PLAIN) + len(ASKED)
    assert finding.end > len(PLAIN)
    # What is not like it stays where it was, and what the shipped texts teach is still known.
    assert (await explained(router, PLAIN)).signals.domain == "rag"
    await put(router, plant("observe"), stored.etag)

    async def seen() -> Any:
        answer = await explained(router, text)
        return answer if answer.signals.domain == "rag" else None

    observed = await until(seen, 60.0)
    assert observed.signals.domain == "rag"
    assert observed.findings[0].outcome == "observed"


async def test_a_trusted_domain_is_not_looked_at(router: Router) -> None:
    sick = PLAIN + "The patient was given heparin and aspirin for chest pain with raised troponin. "
    await act(router, "medical")
    assert (await explained(router, sick)).signals.domain == "medical"
    stored = await router.get("rag")
    stored.policy.detection.mode = "off"
    await put(router, stored.policy, stored.etag)

    async def left_alone() -> Any:
        answer = await explained(router, sick)
        return answer if answer.signals.domain == "rag" else None

    trusted = await until(left_alone, 60.0)
    assert not trusted.findings


async def test_an_undeclared_text_without_risk_is_served_as_one_of_low_risk(router: Router) -> None:
    text = "Write a poem about autumn in Vienna."
    await act(router, *RISKY[1:], "summarization", "rag", "code", "support-chat")
    assert (await explained(router, text, None)).decision.tier == inference_pb2.TIER_DENSE
    await act(router, RISKY[0])
    found = await explained(router, text, None)
    assert found.signals.domain_source == inference_pb2.DOMAIN_SOURCE_DETECTED
    assert found.signals.confidence > 0.5
    assert found.decision.reason == inference_pb2.REASON_LENGTH_BAND
