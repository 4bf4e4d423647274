"""What becomes of each request: an entry of the decision log, a sample for the guards, metrics, a line of the log."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.decisions.rollout import arm
from sparsity_policies.model import Decision, Policy, Signals
from sparsity_serving.metrics.metering import Times

from sparsity_router.decisions.decider import Decided
from sparsity_router.following.follower import PolicyFollower
from sparsity_router.following.guards import GuardMonitor
from sparsity_router.observing.recorder import Recorder
from sparsity_router.observing.request_metrics import RequestMetrics

log = logging.getLogger("sparsity.router.requests")
risk_log = logging.getLogger("sparsity.router.risk")


class EndedRequest(NamedTuple):
    """A request that has ended.

    Attributes:
        decision_id: of its decision.
        signals: what that was made from.
        decision: what policy gave.
        served: the decision as it was served; None where nobody served it.
        completion: the worker's last message; None where there was none, or the router does not see it.
        times: as the router saw it; None where it did not see the stream.
        label: the request id of its caller.
        operation: by the GenAI conventions.
        error: the kind of what ended it, where the router saw the stream and it gave no answer.
    """

    decision_id: str
    signals: Signals
    decision: Decision
    served: Decision | None = None
    completion: inference_pb2.Completion | None = None
    times: Times | None = None
    label: str = ""
    operation: str = ""
    error: str = ""

    @property
    def report(self) -> inference_pb2.SparsityReport | None:
        """What its worker says that it attended, where it says so."""
        completion = self.completion
        return completion.sparsity if completion is not None and completion.HasField("sparsity") else None


class Observer:
    """Told of every request once, when its stream has ended, however it ended.

    With ``logged`` each becomes a line of the log, which holds nothing of its text.
    """

    def __init__(
        self,
        follower: PolicyFollower,
        recorder: Recorder,
        guards: GuardMonitor,
        metrics: RequestMetrics,
        *,
        logged: bool = False,
    ) -> None:
        self._logged = logged
        self._follower = follower
        self._recorder = recorder
        self._guards = guards
        self._metrics = metrics

    def classified(self, decided: Decided) -> None:
        """Takes up a classification: its time, and what the text was like."""
        self._metrics.classified(decided.seconds)
        finding = decided.risk.findings[0] if decided.risk.findings else None
        if finding is None or not decided.decision_id:
            return
        self._metrics.weighed(finding)
        if finding.outcome == "observed":
            own, probability = decided.signals.domain or "undeclared", f"{finding.probability:.2f}"
            what = "request %s (%s) is like %s with probability %s: it would have been moved there"
            risk_log.info(what, decided.decision_id, own, finding.domain, probability)

    def ended(self, request: EndedRequest) -> None:
        """Takes up a request that has ended."""
        decision, served, completion = request.decision, request.served, request.completion
        policy = self._follower.snapshot.policy(decision.policy)
        # Most requests of a busy router are not logged: an entry is made only for those that are.
        self._recorder.decision(request.decision_id, lambda: _entry(request, policy, self._follower.now()))
        told = {"model": request.signals.model, "operation": request.operation, "error": request.error}
        self._metrics.relayed(decision, policy, served, completion, request.times, **told)
        report = request.report
        # A request too short for the sparse kernels was attended whole, and says nothing about them.
        if report and served and report.sparse_kernel_calls:
            self._guards.coverage(decision.policy, served.tier, report)
        if self._logged:
            _log(request)


def _entry(request: EndedRequest, policy: Policy | None, now: float) -> Entry:
    signals, decision, served, completion = request.signals, request.decision, request.served, request.completion
    report = request.report
    if completion is not None and (tokens := completion.usage.prompt_tokens):
        # The worker has counted what the router may only have estimated.
        signals = replace(signals, min_tokens=tokens, max_tokens=tokens)
    return Entry(
        time=now,
        decision_id=request.decision_id,
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


def _log(request: EndedRequest) -> None:
    decision, served, completion, times = request.decision, request.served, request.completion, request.times
    tier = served.tier.word if served else "none"
    fields: dict[str, object] = {
        "decision_id": request.decision_id,
        "model": request.signals.model,
        "policy": decision.policy,
        "policy_revision": decision.policy_revision,
        "tier": tier,
        "reason": (served or decision).reason.name,
    }
    if request.label:
        fields["request_id"] = request.label
    if completion is not None:
        usage = completion.usage
        fields |= {"worker": completion.worker_id, "prompt_tokens": usage.prompt_tokens}
        fields |= {"cached_tokens": usage.cached_tokens, "new_tokens": usage.completion_tokens}
    if times is not None:
        fields |= {"first_token_seconds": times.first_token, "seconds": times.total}
    log.info("%s %s %s %s", request.decision_id, decision.policy or "default", tier, fields["reason"], extra=fields)
