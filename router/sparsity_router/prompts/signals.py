"""A request of which all is known but the length, and the signals that it gives with one."""

from __future__ import annotations

from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.model import Signals, Tier
from sparsity_policies.risk.weighing import Weighed
from sparsity_serving.bounds import MAX_ALSO

from sparsity_router.prompts.domains import Asking, Detection, Found, read_risk, resolve, weighed
from sparsity_router.prompts.lengths import Interval
from sparsity_router.prompts.opened import Scanned, scan


class Arrival(NamedTuple):
    """What is known of a request beside what is in it.

    Attributes:
        received_at: when it came, seconds since the epoch by the policy source's clock.
        policy_age: since the snapshot was last confirmed, seconds.
        request_key: unique to the request.
        session_tier: what the session's earlier requests hold it at.
        problem: what kept that from being known; empty when nothing did.
        model: that serves it.
    """

    received_at: float = 0.0
    policy_age: float = 0.0
    request_key: str = ""
    session_tier: Tier | None = None
    problem: str = ""
    model: str = ""


class Resolved(NamedTuple):
    """A request with its domain, by the policies of one snapshot.

    Attributes:
        scanned: the prompt and what was found in it.
        detection: what the classifiers made of it.
        risk: what that means by these policies.
        found: its domain.
        context: what its caller said of it.
        arrival: what is known beside that.
        snapshot: whose policies they are.
        asking: of which requests the semantic classifier is asked.
    """

    scanned: Scanned
    detection: Detection
    risk: Weighed
    found: Found
    context: inference_pb2.RequestContext
    arrival: Arrival
    snapshot: Snapshot
    asking: Asking

    @classmethod
    def of(
        cls,
        scanned: Scanned,
        detection: Detection,
        context: inference_pb2.RequestContext,
        arrival: Arrival,
        snapshot: Snapshot,
        asking: Asking,
    ) -> Resolved:
        """Finds the domain."""
        risk = weighed(context.domain, detection.risk, snapshot)
        found = resolve(context.domain, scanned.result.domains, detection.scores, snapshot, risk)
        return cls(scanned, detection, risk, found, context, arrival, snapshot, asking)

    def to_read(self, snapshot: Snapshot) -> tuple[int, int]:
        """Bytes to scan, and characters to tell the likeness of, for the policies of ``snapshot``."""
        opened = self.scanned.opened
        scanned = 0 if snapshot.scanner is self.snapshot.scanner else sum(map(len, opened.readings))
        return scanned, 0 if snapshot.policies_hash == self.snapshot.policies_hash else len(opened.words)

    def under(self, snapshot: Snapshot) -> Resolved:
        """The same by the policies of ``snapshot``, for whose detection the prompt is scanned where that differs.

        The semantic classifier is asked once: what it would say by other exemplars is not known, which is a doubt. A
        second opinion is asked for once, too, and no policy changes it: of parts that it has not read, the linear
        model's word stands.
        """
        same = snapshot.scanner is self.snapshot.scanner
        scanned = self.scanned if same else scan(self.scanned.opened, snapshot)
        detection = self._asked(scanned, snapshot)
        if snapshot.policies_hash != self.snapshot.policies_hash:
            risk = read_risk(scanned.opened.words, self.context.domain, snapshot, detection.opinions)
            detection = detection._replace(risk=risk)
        return Resolved.of(scanned, detection, self.context, self.arrival, snapshot, self.asking)

    def _asked(self, scanned: Scanned, snapshot: Snapshot) -> Detection:
        """What the semantic classifier said, as far as it would say so by the exemplars of ``snapshot``."""
        detection, context = self.detection, self.context
        is_asked = self.asking.is_about(context.domain, scanned.result.domains, snapshot)
        if context.flags or not is_asked or detection.exemplars == snapshot.exemplars_hash:
            return detection
        if not snapshot.exemplars_hash:
            # Without any it finds nothing.
            return detection._replace(scores={}, exemplars="")
        problem = "the semantic classifier was not asked by the exemplars of these policies"
        return detection._replace(problem=detection.problem or problem)

    def signals(self, length: Interval) -> Signals:
        """What policy decides from."""
        context, found, result, arrival = self.context, self.found, self.scanned.result, self.arrival
        return Signals(
            min_tokens=length.low,
            max_tokens=length.high,
            domain=found.domain,
            declared=found.declared,
            detected=found.detected,
            confidence=found.confidence,
            flags=result.flags.union(context.flags),
            task=context.task,
            labels=tuple(sorted(context.labels.items())),
            tenant=context.tenant,
            session=context.session,
            session_tier=arrival.session_tier,
            max_tier=Tier(context.max_tier) if context.max_tier else None,
            dense_reasoning=context.dense_reasoning,
            scanned_bytes=result.scanned_bytes,
            prompt_bytes=self.scanned.opened.length,
            # Of who was asked and gave no answer, nobody knows what it would have been.
            classifier_error=self.scanned.problem or self.detection.problem or arrival.problem or _many(found.also),
            received_at=arrival.received_at,
            policy_age=arrival.policy_age,
            request_key=arrival.request_key,
            model=arrival.model,
            also=found.also[:MAX_ALSO],
        )


def _many(also: tuple[str, ...]) -> str:
    """What keeps a prompt of so many domains beside its own from a decision; empty for nothing."""
    return f"{len(also)} other domains of the same risk were found, {MAX_ALSO} at most" if len(also) > MAX_ALSO else ""
