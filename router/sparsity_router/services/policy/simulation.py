"""What a draft would do, for given signals or for recent traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.simulate import SimulatedRequest, Simulation
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.model import Signals
from sparsity_policies.threads import DRAFTS, REPLAYS
from sparsity_policies.wire import policy_from_wire, signals_from_wire, summary_to_wire
from sparsity_rpc.errors import InvalidRequestError

from sparsity_router.services.policy.logged import Seen, logged
from sparsity_router.services.policy.state import PolicyState

MAX_SIGNALS = 10_000


async def simulate_policy(
    state: PolicyState, request: policy_pb2.SimulatePolicyRequest, actor: str
) -> policy_pb2.SimulatePolicyResponse:
    """Decides by the present policies and by the draft."""
    draft = await DRAFTS.run(policy_from_wire, request.policy, EDITS.check)
    replays, now = request.HasField("replay"), state.policies.now()
    if replays == bool(request.signals):
        raise InvalidRequestError.of("signals", "give signals, or a time to replay, and not both")
    if len(request.signals) > MAX_SIGNALS:
        raise InvalidRequestError.of("signals", f"are {len(request.signals)}; one call takes {MAX_SIGNALS}")
    signals = [signals_from_wire(item, f"signals[{n}]", now) for n, item in enumerate(request.signals)]
    simulation = Simulation(*await DRAFTS.run(state.check, draft), state.shape)
    if not replays:
        found = await REPLAYS.run(_decide_all, simulation, signals)
        return summary_to_wire(simulation.summary(), found)
    seen = Seen()
    async for batch in logged(state.decisions, request.replay, "replay"):
        await REPLAYS.run(_replay, simulation, seen.readable(batch), now)
    response = summary_to_wire(simulation.summary())
    seen.tell(response.summary)
    return response


def _decide_all(simulation: Simulation, signals: Sequence[Signals]) -> list[SimulatedRequest]:
    return [simulation.add(item) for item in signals]


def _replay(simulation: Simulation, entries: Sequence[Entry], now: float) -> None:
    """Decides entries by the policies of now."""
    for entry in entries:
        simulation.observe(entry)
        simulation.add(dataclasses.replace(entry.signals, received_at=now, policy_age=0.0), entry.new_tokens)
