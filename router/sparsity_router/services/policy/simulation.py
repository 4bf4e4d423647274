"""What a draft would do, for given signals or for recent traffic."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TypeVar

from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.simulate import SimulatedRequest, Simulation
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.model import Signals
from sparsity_policies.threads import DRAFTS, REPLAYS
from sparsity_policies.wire import policy_from_wire, signals_from_wire, summary_to_wire
from sparsity_rpc.errors import InvalidRequestError

from sparsity_router.models.models import Models
from sparsity_router.services.policy.logged import Seen, logged
from sparsity_router.services.policy.state import PolicyState

MAX_SIGNALS = 10_000
_MOMENT_SECONDS = 0.25
_T = TypeVar("_T")


async def simulate_policy(
    state: PolicyState, request: policy_pb2.SimulatePolicyRequest, actor: str
) -> policy_pb2.SimulatePolicyResponse:
    """Decides by the present policies and by the draft."""
    draft = await DRAFTS.run(policy_from_wire, request.policy, EDITS.check)
    replays, now = request.HasField("replay"), state.follower.now()
    if replays == bool(request.signals):
        raise InvalidRequestError.of("signals", "give signals, or a time to replay, and not both")
    if len(request.signals) > MAX_SIGNALS:
        raise InvalidRequestError.of("signals", f"are {len(request.signals)}; one call takes {MAX_SIGNALS}")
    signals = await DRAFTS.run(_signals, request, now, state.models)
    simulation = Simulation(*await DRAFTS.run(state.check, draft), state.models.shapes)
    if not replays:
        found, left = [], iter(signals)
        while some := await REPLAYS.run(_decide, simulation, left):
            found += some
        return await REPLAYS.run(summary_to_wire, simulation.summary(), found)
    seen = Seen()
    async for batch in logged(state.decisions, request.replay, "replay"):
        entries = iter(seen.readable(batch))
        while await REPLAYS.run(_replay, simulation, entries, now):
            pass
    response = summary_to_wire(simulation.summary())
    seen.tell(response.summary)
    return response


def _signals(request: policy_pb2.SimulatePolicyRequest, now: float, models: Models) -> list[Signals]:
    """What was given, of the models that requests of such names get."""
    found = []
    for number, item in enumerate(request.signals):
        path = f"signals[{number}]"
        signals = signals_from_wire(item, path, now)
        if (model := models.named(signals.model)) is None:
            raise InvalidRequestError.of(f"{path}.model", models.refusal(signals.model))
        found.append(dataclasses.replace(signals, model=model.name))
    return found


def _decide(simulation: Simulation, signals: Iterator[Signals]) -> list[SimulatedRequest]:
    """Decides as many as a moment is enough for; none are left when it decides none."""
    return [simulation.add(item) for item in _for_a_moment(signals)]


def _replay(simulation: Simulation, entries: Iterator[Entry], now: float) -> int:
    """Decides entries by the policies of now, as many as a moment is enough for; their number."""
    count = 0
    for entry in _for_a_moment(entries):
        simulation.observe(entry)
        simulation.add(dataclasses.replace(entry.signals, received_at=now, policy_age=0.0), entry.new_tokens)
        count += 1
    return count


def _for_a_moment(items: Iterator[_T]) -> Iterator[_T]:
    """Items until a moment has passed: other callers' come between, and who has left is decided for no longer."""
    until = time.monotonic() + _MOMENT_SECONDS
    for item in items:
        yield item
        if time.monotonic() > until:
            return
