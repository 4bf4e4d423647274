"""What a draft would do: the live decision function run over signals twice, with the costs beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from sparsity_policies.decisions.costs import DENSE, Cost, Density, Pairs, Shapes, assumed_density
from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.model import Decision, Risk, Signals, Tier


class SimulatedRequest(NamedTuple):
    """One request decided by the present policies and by a draft."""

    before: Decision
    after: Decision


class Summary(NamedTuple):
    """Many requests, decided twice; the costs are None where no model's shape is known."""

    requests: int
    changes: Mapping[tuple[Tier, Tier], int]
    high_risk_changed: int
    high_risk_sparser: int
    before: Cost | None
    after: Cost | None
    densities: Mapping[Tier, Density]


class _Class(NamedTuple):
    """Requests that are reckoned alike: of one model, with 2^length prompt tokens or more, and less than twice that."""

    model: str
    length: int

    @classmethod
    def of(cls, signals: Signals) -> _Class:
        return cls(signals.model, max(signals.max_tokens, 1).bit_length() - 1)


class Simulation:
    """Decides by ``present`` and by ``draft``, and keeps account; it holds sums, not requests.

    Costs are reckoned by models and by lengths, in classes that double: what a tier attends depends on these above all.
    """

    def __init__(self, present: Snapshot, draft: Snapshot, shapes: Shapes) -> None:
        self._present = present
        self._draft = draft
        self._shapes = shapes
        self._changes: Counter[tuple[Tier, Tier]] = Counter()
        self._high_risk: Counter[str] = Counter()
        self._pairs: dict[tuple[Tier, Tier, _Class], Pairs] = defaultdict(Pairs)
        self._observed: dict[tuple[Tier, _Class], Density] = {}

    def add(self, signals: Signals, new_tokens: int = 0) -> SimulatedRequest:
        """Decides one request twice."""
        found = SimulatedRequest(decide(signals, self._present), decide(signals, self._draft))
        before, after = found.before.tier, found.after.tier
        self._changes[before, after] += 1
        place = (before, after, _Class.of(signals))
        self._pairs[place] = self._pairs[place].plus(Pairs.of(signals.max_tokens, new_tokens))
        if before is not after and self._is_high_risk(signals):
            self._high_risk["changed"] += 1
            self._high_risk["sparser"] += after > before
        return found

    def observe(self, entry: Entry) -> None:
        """Takes up the density that a sparse worker reported."""
        if entry.served_tier and entry.served_tier is not Tier.DENSE and entry.prefill_density:
            place = entry.served_tier, _Class.of(entry.signals)
            prefill, decode, known = self._observed.get(place, Density(0.0, 0.0))
            share = 1 / (known + 1)
            self._observed[place] = Density(
                prefill + (entry.prefill_density - prefill) * share,
                decode + (entry.decode_density - decode) * share,
                known + 1,
            )

    def summary(self) -> Summary:
        """The account so far; where no density was observed, the assumed one stands in."""
        costs = (self._cost(0), self._cost(1)) if self._shapes else (None, None)
        return Summary(
            requests=self._changes.total(),
            changes=dict(self._changes),
            high_risk_changed=self._high_risk["changed"],
            high_risk_sparser=self._high_risk["sparser"],
            before=costs[0],
            after=costs[1],
            densities={tier: self._mean_density(tier) for tier in Tier},
        )

    def _cost(self, side: int) -> Cost:
        total = Cost(0.0, 0.0)
        for (before, after, alike), pairs in self._pairs.items():
            if (shape := self._shapes.of(alike.model)) is not None:
                total = total.plus(shape.cost(pairs, self._density((before, after)[side], alike)))
        return total

    def _density(self, tier: Tier, alike: _Class) -> Density:
        return self._observed.get((tier, alike)) or assumed_density(tier, 2**alike.length)

    def _mean_density(self, tier: Tier) -> Density:
        """What a tier was reckoned with over the requests that either side gave it, and on how many it was measured."""
        total, prompt, new, measured = Pairs(), 0.0, 0.0, 0
        for place, pairs in self._pairs.items():
            if tier in place[:2]:
                density = self._density(tier, place[2])
                total = total.plus(pairs)
                prompt, new = prompt + pairs.prompt * density.prefill, new + pairs.new * density.decode
        for (observed, _), density in self._observed.items():
            measured += density.requests if observed is tier else 0
        if not total.prompt:
            return DENSE._replace(requests=measured)
        return Density(prompt / total.prompt, new / total.new if total.new else 1.0, measured)

    def _is_high_risk(self, signals: Signals) -> bool:
        policies = (self._present.policies.get(signals.domain), self._draft.policies.get(signals.domain))
        return bool(signals.flags) or any(item.policy.risk is Risk.HIGH for item in policies if item)
