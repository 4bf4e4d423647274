"""What a worker did and how busy it is, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from opentelemetry import metrics
from opentelemetry.metrics import Observation
from sparsity.v1 import inference_pb2
from sparsity_rpc import semconv
from sparsity_rpc.tracing import error_type
from sparsity_serving import telemetry
from sparsity_serving.metrics.metering import SHARES, Generations, Times, Total, histogram, is_on, meter_of, observe

from sparsity_worker.calls.identity import on_the_wire
from sparsity_worker.calls.load import Load
from sparsity_worker.config import ModelFacts, WorkerConfig

_GROUPS = ("first", "middle", "last")
_LAYERS = "sparsity.layers"


class WorkerMetrics:
    """Instruments of one worker.

    Args:
        config: its options.
        facts: its model.
        load: how busy it is.
        kv_tokens: tokens that its KV cache holds.
        meter: where they are kept.
    """

    def __init__(
        self, config: WorkerConfig, facts: ModelFacts, load: Load, kv_tokens: int, meter: metrics.Meter | None = None
    ) -> None:
        self._on = meter is not None or is_on()
        meter = meter or meter_of("sparsity.worker")
        self._generations = Generations(meter)
        self._model = {semconv.GEN_AI_REQUEST_MODEL: facts.name}
        self._at = {on_the_wire(name): {telemetry.TIER: name} for name in config.tiers}
        shares = partial(histogram, meter, unit="1", bounds=SHARES)
        density = "Attended over causal pairs of the prompt, by third of the layers."
        coverage = "Estimated share of softmax mass kept, by third of the layers."
        self._density = shares("sparsity.worker.layer.density", what=density)
        self._coverage = shares("sparsity.worker.layer.coverage", what=coverage)
        measured = "Share of softmax mass kept, measured on some rows of some requests."
        self._measured = shares("sparsity.worker.coverage.measured", what=measured)
        calls = "Attention kernel calls; sparse ones pruned something."
        self._calls = Total(meter, "sparsity.worker.kernel.calls", "{call}", calls)

        used = "Share of the KV cache that live requests held when a router last heard of it."
        aborted = "Requests that were cancelled or failed."
        observe(
            meter,
            [
                ("sparsity.worker.requests", "{request}", "In flight.", self._each(lambda tier: load.at(tier)[0])),
                ("sparsity.worker.requests.limit", "{request}", "Accepted at once.", self._each(lambda _: load.limit)),
                ("sparsity.worker.outstanding", "{token}", "Still to work on.", self._each(lambda at: load.at(at)[1])),
                ("sparsity.worker.draining", "1", "1 while it admits no more.", self._each(lambda _: load.draining)),
                (
                    "sparsity.worker.kv_use", "1", used,
                    self._each(lambda _: load.kv_used_tokens / max(kv_tokens, 1)),
                ),
            ],
            [("sparsity.worker.aborted", "{request}", aborted, self._each(lambda at: load.aborted_by_tier[at]))],
        )  # fmt: skip

    def _each(self, read: Callable[[inference_pb2.Tier.ValueType], float]) -> Callable[[], list[Observation]]:
        """A series of each tier; what tiers share is told of each, so that whoever looks at one finds it."""
        return lambda: [Observation(+read(tier), attributes) for tier, attributes in self._at.items()]

    def failed(self, error: BaseException, seconds: float, tier: inference_pb2.Tier.ValueType, operation: str) -> None:
        """Takes up one request that ended without an answer, so many seconds after its receipt."""
        if self._on:
            self._generations.failed(seconds, {**self._at[tier], **self._model}, operation, error_type(error))

    def finished(
        self, completion: inference_pb2.Completion, times: Times, tier: inference_pb2.Tier.ValueType, operation: str
    ) -> None:
        """Takes up one request that was answered at a tier; its operation by the GenAI conventions."""
        if not self._on:
            return
        at = self._at[tier]
        self._generations.record(completion, times, {**at, **self._model}, operation)
        report = completion.sparsity
        for kind, count in (
            ("sparse", report.sparse_kernel_calls),
            ("dense", report.kernel_calls - report.sparse_kernel_calls),
        ):
            self._calls.add(count, {**at, "sparsity.kernel.kind": kind})
        if report.HasField("measured_coverage"):
            self._measured.record(report.measured_coverage, at)
        for name, layers in _thirds(report.layers):
            where = {**at, _LAYERS: name}
            self._density.record(sum(layer.prefill_density for layer in layers) / len(layers), where)
            self._coverage.record(sum(layer.coverage for layer in layers) / len(layers), where)


def _thirds(
    layers: Sequence[inference_pb2.LayerReport],
) -> list[tuple[str, Sequence[inference_pb2.LayerReport]]]:
    """The layers in three groups, the empty ones left out."""
    count = len(layers)
    cuts = [count * place // 3 for place in range(4)]
    return [
        (name, layers[low:high]) for name, low, high in zip(_GROUPS, cuts[:-1], cuts[1:], strict=True) if high > low
    ]
