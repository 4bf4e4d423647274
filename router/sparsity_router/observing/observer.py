"""What becomes of each request: an entry of the decision log, a sample for the guards, metrics, a line of the log."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.rollout import arm
from sparsity_policies.model import Decision, Policy, Signals
from sparsity_serving.metrics.metering import Times

from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics

log = logging.getLogger("sparsity.router.requests")


class Observer:
    """Told of every request once, when its stream has ended, however it ended.

    With ``logged`` each becomes a line of the log, which holds nothing of its text.
    """

    def __init__(
        self,
        policies: PolicyFollower,
        recorder: Recorder,
        guards: GuardMonitor,
        metrics: RequestMetrics,
        *,
        logged: bool = False,
    ) -> None:
        self._logged = logged
        self._policies = policies
        self._recorder = recorder
        self._guards = guards
        self._metrics = metrics

    def classified(self, seconds: float) -> None:
        """Takes up the time that a classification took."""
        self._metrics.classified(seconds)

    def relayed(
        self,
        decision_id: str,
        signals: Signals,
        decision: Decision,
        served: Decision | None,
        completion: inference_pb2.Completion | None,
        times: Times | None = None,
        label: str = "",
    ) -> None:
        """Takes up a request: what was decided and what served it, its completion if any, and its caller's label."""
        policy = self._policies.snapshot.policy(decision.policy)
        report = completion.sparsity if completion is not None and completion.HasField("sparsity") else None
        # Most requests of a busy router are not logged: an entry is made only for those that are.
        self._recorder.decision(
            decision_id, lambda: self._entry(decision_id, signals, decision, policy, served, completion, report)
        )
        self._metrics.relayed(decision, policy, served, completion, times)
        # A request too short for the sparse kernels was attended whole, and says nothing about them.
        if report and served and report.sparse_kernel_calls:
            self._guards.coverage(decision.policy, served.tier, report)
        if self._logged:
            _log(decision_id, decision, served, completion, times, label)

    def _entry(
        self,
        decision_id: str,
        signals: Signals,
        decision: Decision,
        policy: Policy | None,
        served: Decision | None,
        completion: inference_pb2.Completion | None,
        report: inference_pb2.SparsityReport | None,
    ) -> Entry:
        if completion is not None and (tokens := completion.usage.prompt_tokens):
            # The worker has counted what the router may only have estimated.
            signals = replace(signals, min_tokens=tokens, max_tokens=tokens)
        return Entry(
            time=time.time(),
            decision_id=decision_id,
            signals=signals,
            policy=decision.policy,
            policy_revision=decision.policy_revision,
            policy_tier=decision.policy_tier,
            reason=decision.reason,
            matched_rule=decision.matched_rule,
            served_tier=served.tier if served else None,
            prefill_density=report.prefill_density if report else 0.0,
            decode_density=report.decode_density if report else 0.0,
            coverage=report.coverage if report else 0.0,
            new_tokens=completion.usage.completion_tokens if completion is not None else 0,
            arm=arm(policy, decision),
        )


def _log(
    decision_id: str,
    decision: Decision,
    served: Decision | None,
    completion: inference_pb2.Completion | None,
    times: Times | None,
    label: str = "",
) -> None:
    tier = served.tier.word if served else "none"
    fields: dict[str, object] = {
        "decision_id": decision_id,
        "policy": decision.policy,
        "policy_revision": decision.policy_revision,
        "tier": tier,
        "reason": (served or decision).reason.name,
    }
    if label:
        fields["request_id"] = label
    if completion is not None:
        usage = completion.usage
        fields |= {"worker": completion.worker_id, "prompt_tokens": usage.prompt_tokens}
        fields |= {"cached_tokens": usage.cached_tokens, "new_tokens": usage.completion_tokens}
    if times is not None:
        fields |= {"first_token_seconds": times.first_token, "seconds": times.total}
    log.info("%s %s %s %s", decision_id, decision.policy or "default", tier, fields["reason"], extra=fields)
