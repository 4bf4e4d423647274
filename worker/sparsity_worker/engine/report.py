"""The sparsity report of one request, made from the engine's account."""

from __future__ import annotations

from sparsity.v1 import inference_pb2

from sparsity_worker.plugin.accounts.ledger import Account
from sparsity_worker.plugin.accounts.shares import DECODE, PREFILL


def sparsity_report(
    tier: inference_pb2.Tier.ValueType, profile: str, backend: str, packed: bytes
) -> inference_pb2.SparsityReport:
    """The report; a dense backend attends everything, and keeps no account.

    Raises:
        ValueError: when the account is malformed.
    """
    report = inference_pb2.SparsityReport(
        tier=tier,
        profile=profile,
        backend=backend,
        prefill_density=1,
        decode_density=1,
        coverage=1,
        min_layer_coverage=1,
    )
    if not packed:
        return report
    account = Account.unpack(packed)
    prefill, decode, coverage = account.density(PREFILL), account.density(DECODE), account.coverage()
    report.prefill_density = float(prefill.mean())
    report.decode_density = float(decode.mean())
    report.coverage = float(coverage.mean())
    report.min_layer_coverage = float(coverage.min())
    report.sparse_kernel_calls = account.sparse_calls
    report.kernel_calls = account.calls
    report.dense_reasoning_tokens = account.reasoning
    if account.measured_rows:
        report.measured_coverage, report.measured_rows = account.measured, account.measured_rows
    for values in zip(prefill, decode, coverage, strict=True):
        layer = dict(zip(("prefill_density", "decode_density", "coverage"), map(float, values), strict=True))
        report.layers.add(**layer)
    return report
