"""What sparse attention saved each domain, reckoned from the decision log.

Costs are those of :mod:`sparsity_policies.decisions.costs`, with the densities that workers reported for each request.
A request without a report (routed to a direct stream, or failed) is counted, and reckoned to have saved nothing. Prompt
tokens that a prefix cache held are reckoned as attended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sparsity_policies.decisions.costs import DENSE, Cost, Density, Pairs, Shapes
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.model import Tier

_NOTHING = Cost(0.0, 0.0)


@dataclass(slots=True)
class DomainSavings:
    """One domain's account.

    Attributes:
        requests: decided.
        prompt_tokens: of all of them.
        new_tokens: that were generated.
        tiers: requests by the tier that answered.
        unreported: requests of which no worker said what it attended.
        took: what attention took.
        dense: what dense attention would have taken.
        sparse: requests that a sparse tier answered with a report.
        covered: their coverage, summed.
    """

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    tiers: Counter[Tier] = field(default_factory=Counter)
    unreported: int = 0
    took: Cost = _NOTHING
    dense: Cost = _NOTHING
    sparse: int = 0
    covered: float = 0.0

    @property
    def coverage(self) -> float | None:
        """Mean coverage of the sparse answers; None without any."""
        return self.covered / self.sparse if self.sparse else None


class Savings:
    """Accounts by policy; it holds sums, not requests.

    Args:
        shapes: of the models; requests of one without a shape cost nothing.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self.domains: dict[str, DomainSavings] = {}

    def add(self, entry: Entry) -> None:
        """Takes up one entry of the decision log."""
        account = self.domains.setdefault(entry.policy, DomainSavings())
        tokens = entry.signals.max_tokens
        account.requests += 1
        account.prompt_tokens += tokens
        account.new_tokens += entry.new_tokens
        reported = entry.served_tier is not None and entry.prefill_density > 0
        account.unreported += not reported
        if entry.served_tier is not None:
            account.tiers[entry.served_tier] += 1
        if reported and entry.served_tier is not Tier.DENSE:
            account.sparse += 1
            account.covered += entry.coverage
        if (shape := self._shapes.of(entry.signals.model)) is not None:
            pairs = Pairs.of(tokens, entry.new_tokens)
            density = Density(entry.prefill_density, entry.decode_density) if reported else DENSE
            account.took = account.took.plus(shape.cost(pairs, density))
            account.dense = account.dense.plus(shape.cost(pairs, DENSE))
