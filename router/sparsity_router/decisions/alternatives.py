"""What would have to be different about a request for another tier: found by deciding again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sparsity_policies.decisions.decide import decide
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.model import Decision, Signals

# Each takes a decision, and a service may have thousands of domains, a policy hundreds of bands.
_TRIED = 50


def alternatives(signals: Signals, snapshot: Snapshot, decision: Decision) -> list[str]:
    """One sentence for each single change that gives another tier; of many bands or domains the first are tried."""
    found = []
    for change, other in _changes(signals, snapshot):
        tier = decide(other, snapshot).tier
        if tier is not decision.tier:
            found.append(f"{change}: {tier.word}")
    return found


def _changes(signals: Signals, snapshot: Snapshot) -> Iterator[tuple[str, Signals]]:
    compiled = snapshot.compiled(signals.domain, signals.model)
    if compiled:
        for start in sorted({band.from_tokens for band in compiled.policy.bands})[:_TRIED]:
            yield f"with {max(start, 1)} prompt tokens", replace(signals, min_tokens=start, max_tokens=start)
    if signals.flags:
        yield "without flags", replace(signals, flags=frozenset())
    if signals.max_tier is not None:
        yield "without the caller's max_tier", replace(signals, max_tier=None)
    for domain in sorted(snapshot.policies)[:_TRIED]:
        if domain != signals.domain:
            yield f"in domain {domain}", replace(signals, domain=domain)
    if signals.domain:
        yield "without a domain, declared or detected", replace(signals, domain="")
