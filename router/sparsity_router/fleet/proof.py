"""Whether a worker's report shows the attention that it was asked for: silence is none, and neither is less."""

from __future__ import annotations

from sparsity.v1 import inference_pb2
from sparsity_policies.model import Tier

# A mean over layers need not be 1 to the last bit.
_WHOLE = 1 - 1e-9


def pruned(report: inference_pb2.SparsityReport) -> bool:
    """Whether something was left out."""
    # 0 is a density that was not reported.
    densities = (report.prefill_density, report.decode_density)
    return report.sparse_kernel_calls > 0 or any(0 < density < _WHOLE for density in densities)


def is_less(completion: inference_pb2.Completion, tier: Tier) -> bool:
    """Whether an answer got less attention than ``tier``, by its worker's own report."""
    report = completion.sparsity
    return int(report.tier) > tier or (tier is Tier.DENSE and pruned(report))


def fault(completion: inference_pb2.Completion, tier: Tier, *, must_report: bool) -> str:
    """What keeps a report from being believed of a worker that was asked at ``tier``; empty when nothing does."""
    if is_less(completion, tier):
        return f"an answer of it at {tier.word} got less attention than that, by its own report"
    if must_report and not (completion.HasField("sparsity") and completion.sparsity.kernel_calls):
        return "an answer of it came without a sparsity report"
    return ""
