"""What a draft would do, for given signals or for recent traffic."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from sparsity.errors import InvalidRequestError
from sparsity.v1 import policy_pb2
from sparsity_policies.decisionlog import Replayed
from sparsity_policies.model import Signals
from sparsity_policies.simulate import SimulatedRequest, Simulation
from sparsity_policies.wire import policy_from_wire, signals_from_wire, summary_to_wire, timestamp

from sparsity_router.services.logged import logged
from sparsity_router.services.policy_state import Context, Part

MAX_SIGNALS = 10_000


class Simulations(Part):
    """Drafts run through the decision function of the live path."""

    async def SimulatePolicy(
        self, request: policy_pb2.SimulatePolicyRequest, context: Context
    ) -> policy_pb2.SimulatePolicyResponse:
        """Decides by the present policies and by the draft."""
        draft = policy_from_wire(request.policy)
        self._state.check(draft)
        replays, now = request.HasField("replay"), self._state.policies.now()
        if replays == bool(request.signals):
            raise InvalidRequestError.of("signals", "give signals, or a time to replay, and not both")
        if len(request.signals) > MAX_SIGNALS:
            raise InvalidRequestError.of("signals", f"are {len(request.signals)}; one call takes {MAX_SIGNALS}")
        signals = [signals_from_wire(item, f"signals[{n}]", now) for n, item in enumerate(request.signals)]
        present = self._state.policies.snapshot
        changed = await asyncio.to_thread(present.with_draft, draft)
        simulation = Simulation(present, changed, self._state.shape)
        if not replays:
            found = await asyncio.to_thread(_decide_all, simulation, signals)
            return summary_to_wire(simulation.summary(), found)
        unreadable = 0
        times: list[float] = []
        async for batch in logged(self._state.decisions, request.replay, "replay"):
            unreadable += await asyncio.to_thread(_replay_batch, simulation, batch, now, times)
        response = summary_to_wire(simulation.summary())
        response.summary.unreadable_entries = unreadable
        if times:
            response.summary.start_time.CopyFrom(timestamp(min(times)))
            response.summary.end_time.CopyFrom(timestamp(max(times)))
        return response


def _decide_all(simulation: Simulation, signals: Sequence[Signals]) -> list[SimulatedRequest]:
    return [simulation.add(item) for item in signals]


def _replay_batch(simulation: Simulation, batch: list[Replayed], now: float, times: list[float]) -> int:
    """Decides a batch by the policies of now, and returns how many entries could not be read."""
    readable = [replayed.entry for replayed in batch if replayed.entry is not None]
    for entry in readable:
        simulation.observe(entry)
        simulation.add(dataclasses.replace(entry.signals, received_at=now, policy_age=0.0), entry.new_tokens)
    if readable:
        spread = [entry.time for entry in readable]
        times += [min(spread), max(spread)]
    return len(batch) - len(readable)
