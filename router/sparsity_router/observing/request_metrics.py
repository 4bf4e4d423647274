"""What becomes of requests, as metrics: decisions, times, density and coverage, and the attention that was saved.

The policy stands for the domain, because callers may name domains at will and a metric has a series for each.
"""

from __future__ import annotations

from functools import partial
from itertools import product

from opentelemetry import metrics
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.costs import DENSE, H100, Density, GpuSpeed, Pairs, Shapes
from sparsity_policies.model import Decision, Policy, Tier
from sparsity_policies.risk.weighing import Finding
from sparsity_rpc import semconv
from sparsity_serving import telemetry
from sparsity_serving.metrics.metering import CLASSIFY_SECONDS, Generations, Times, Total, histogram, is_on, meter_of

from sparsity_router.fleet.proof import is_less


class RequestMetrics:
    """Instruments of one router's requests.

    Args:
        shapes: of the models, for what attention costs; that of one without a shape is not counted.
        meter: where they are kept.
        gpu: what saved attention would have taken its time on.
    """

    def __init__(self, shapes: Shapes, meter: metrics.Meter | None = None, gpu: GpuSpeed = H100) -> None:
        self._on = meter is not None or is_on()
        meter = meter or meter_of("sparsity.router")
        self._shapes = shapes
        self._gpu = gpu
        self._generations = Generations(meter)
        count = partial(Total, meter)
        self._decisions = count("sparsity.router.decisions", "{request}", "By domain, risk, tier and reason.")
        self._wanted = count("sparsity.router.wanted", "{request}", "By the tier that policy gave, whoever answered.")
        self._violations = count(
            "sparsity.router.policy.violations", "{request}", "Answered with less attention than policy gave: never."
        )
        self._findings = count(
            "sparsity.router.risk.findings",
            "{request}",
            "Texts by the domain that they are most like, and what came of it.",
        )
        self._flops = count("sparsity.attention.flops", "1", "Floating-point operations that attention took.")
        self._flops_saved = count("sparsity.attention.flops.saved", "1", "That dense attention would have taken more.")
        self._bytes = count("sparsity.attention.kv_read", "By", "Keys and values that decoding read.")
        self._bytes_saved = count("sparsity.attention.kv_read.saved", "By", "That dense decoding would have read more.")
        self._gpu_time = count("sparsity.gpu.time.saved", "s", "Estimated, at the speed of dense attention.")
        self._classifying = histogram(
            meter,
            "sparsity.router.classify.duration",
            "s",
            "Scan, length and domain of one request.",
            CLASSIFY_SECONDS,
        )
        # Series that are there from the beginning: an increase from nothing would not be seen.
        self._violations.add(0, {})
        for model, tier in product(shapes.models, Tier):
            self._wanted.add(0, {telemetry.TIER: tier.word, semconv.GEN_AI_REQUEST_MODEL: model})

    def classified(self, seconds: float) -> None:
        """Takes up the time that one classification took."""
        self._classifying.record(seconds)

    def weighed(self, finding: Finding) -> None:
        """Takes up what one text is most like."""
        if self._on:
            self._findings.add(1, {telemetry.DOMAIN: finding.domain, "sparsity.risk.outcome": finding.outcome})

    def relayed(
        self,
        decision: Decision,
        policy: Policy | None,
        served: Decision | None,
        completion: inference_pb2.Completion | None,
        times: Times | None,
        *,
        model: str = "",
        operation: str = semconv.TEXT_COMPLETION,
        error: str = "",
    ) -> None:
        """Takes up one request, however it ended.

        Args:
            decision: what policy gave.
            policy: that decided; None for one that is no longer there.
            served: as it was served; None where nobody served it.
            completion: the worker's last message; None where there was none, or the router does not see it.
            times: as the router saw it; None where it did not see the stream.
            model: that it was of.
            operation: by the GenAI conventions.
            error: the kind of what ended it without an answer.
        """
        if not self._on:
            return
        tier = served.tier.word if served else "none"
        common = {telemetry.DOMAIN: decision.policy, telemetry.TIER: tier}
        reason = (served or decision).reason.name
        risk = policy.risk.name.lower() if policy else "unknown"
        self._decisions.add(1, {**common, telemetry.REASON: reason, "sparsity.risk": risk})
        self._wanted.add(1, {telemetry.TIER: decision.tier.word, semconv.GEN_AI_REQUEST_MODEL: model})
        if _is_less(decision, served, completion):
            self._violations.add(1, {telemetry.DOMAIN: decision.policy})
        if times is None:
            return
        timed = {**common, semconv.GEN_AI_REQUEST_MODEL: model}
        if completion is None:
            self._generations.failed(times.total, timed, operation, error)
            return
        self._generations.record(completion, times, timed, operation)
        if (shape := self._shapes.of(model)) is not None and completion.HasField("sparsity"):
            usage, report = completion.usage, completion.sparsity
            whole = Pairs.of(usage.prompt_tokens, usage.completion_tokens)
            # What the prefix cache held was attended by an earlier request.
            pairs = Pairs(whole.prompt - Pairs.of(usage.cached_tokens, 0).prompt, whole.new)
            took = shape.cost(pairs, Density(report.prefill_density, report.decode_density))
            saved = shape.cost(pairs, DENSE).beyond(took)
            self._flops.add(took.flops, common)
            self._flops_saved.add(saved.flops, common)
            self._bytes.add(took.kv_bytes, common)
            self._bytes_saved.add(saved.kv_bytes, common)
            self._gpu_time.add(self._gpu.seconds(saved), common)


def _is_less(decision: Decision, served: Decision | None, completion: inference_pb2.Completion | None) -> bool:
    """Whether a request got less attention than policy gave it, by the router's record or by the worker's own."""
    if served is not None and served.tier > decision.tier:
        return True
    return completion is not None and is_less(completion, decision.tier)
