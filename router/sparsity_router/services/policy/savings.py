"""What sparse attention saved, by domain."""

from __future__ import annotations

from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.savings import DomainSavings, Savings
from sparsity_policies.threads import REPLAYS

from sparsity_router.following.guards import capped
from sparsity_router.services.policy.logged import Seen, logged
from sparsity_router.services.policy.state import PolicyState


async def get_savings(
    state: PolicyState, request: policy_pb2.GetSavingsRequest, actor: str
) -> policy_pb2.GetSavingsResponse:
    """Requests, tokens, attention and guards of each domain."""
    savings, seen = Savings(state.models.shapes), Seen()
    async for batch in logged(state.decisions, request.since, "since"):
        await REPLAYS.run(_add, savings, seen.readable(batch))
    response = policy_pb2.GetSavingsResponse()
    for domain, account in sorted(savings.domains.items()):
        response.domains.append(_row(state, domain, account))
    seen.tell(response)
    return response


def _row(state: PolicyState, domain: str, account: DomainSavings) -> policy_pb2.DomainSavings:
    row = policy_pb2.DomainSavings(
        domain=domain,
        requests=account.requests,
        prompt_tokens=account.prompt_tokens,
        new_tokens=account.new_tokens,
        unreported_requests=account.unreported,
    )
    for tier, count in sorted(account.tiers.items()):
        row.tiers.add(tier=tier.value, requests=count)
    if state.models.shapes:
        row.attention.flops, row.attention.kv_bytes = account.took
        row.dense.flops, row.dense.kv_bytes = account.dense
    if account.coverage is not None:
        row.coverage = account.coverage
    policy = state.follower.snapshot.policy(domain)
    if policy is None:
        return row
    guards, rollout = policy.guards, policy.rollout
    if guards.min_coverage is not None:
        row.min_coverage = guards.min_coverage
    row.guard_tripped = capped(state.follower, domain) is not None or (rollout is not None and rollout.halted)
    return row


def _add(savings: Savings, entries: list[Entry]) -> None:
    for entry in entries:
        savings.add(entry)
