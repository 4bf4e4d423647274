"""Whether a worker shows the attention of a tier, at its start and answer by answer: silence is none, nor is less."""

from __future__ import annotations

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Tier

# A mean over layers need not be 1 to the last bit.
_WHOLE = 1 - 1e-9


def start_fault(proof: worker_pb2.BackendProof, tier: Tier, *, attends: bool) -> str:
    """What keeps a tier from being believed by its start-up proof; empty when nothing does.

    Args:
        proof: of the tier.
        tier: a sparse one must have pruned, the dense one must not.
        attends: whether the worker's engine attends anything.
    """
    shows = ""
    if tier is Tier.DENSE:
        shows = "sparse kernel calls" if proof.sparse_kernel_calls else shows
        shows = "a density below 1" if not shows and 0 < proof.density < _WHOLE else shows
    elif attends and not proof.sparse_kernel_calls:
        shows = "no sparse kernel call"
    return f"its start-up proof shows {shows}" if shows else ""


def pruned(report: inference_pb2.SparsityReport) -> bool:
    """Whether something was left out."""
    # 0 is a density that was not reported.
    densities = (report.prefill_density, report.decode_density)
    return report.sparse_kernel_calls > 0 or any(0 < density < _WHOLE for density in densities)


def is_less(completion: inference_pb2.Completion, tier: Tier) -> bool:
    """Whether an answer got less attention than ``tier``, by its worker's own report."""
    report = completion.sparsity
    return int(report.tier) > tier or (tier is Tier.DENSE and pruned(report))


def fault(completion: inference_pb2.Completion, tier: Tier, *, must_report: bool = False) -> str:
    """What keeps a report from being believed of a worker that was asked at ``tier``; empty when nothing does."""
    if is_less(completion, tier):
        return f"an answer of it at {tier.word} got less attention than that, by its own report"
    if must_report and not (completion.HasField("sparsity") and completion.sparsity.kernel_calls):
        return "an answer of it came without a sparsity report"
    return ""
