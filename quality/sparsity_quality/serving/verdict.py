"""Whether figures may be shown at all, and the rows of the result file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparsity.benchmark import Row, against, judged

from sparsity_quality.serving.measure import Measured
from sparsity_quality.serving.plan import Plan

# Times dense, to the first token; and what short prompts must keep.
_FIRST: Mapping[str, Mapping[int, float]] = {
    "aggressive": {32768: 1.33, 65536: 1.8, 102400: 2.3},
    "moderate": {32768: 1.26, 65536: 1.7, 102400: 2.1},
}
_SHORT, _SHORT_TO, _DECODE, _DECODE_BATCH = 0.98, 4096, 2.0, 8
# One wrong first token of ten: made-up weights leave near ties, and tiers may round differently.
_PARITY = 0.9


def faults(found: Mapping[str, Measured], plan: Plan) -> list[str]:
    """Why nothing of the run may be called faster; empty when all is well."""
    wrong = []
    longest = max(plan.prompts)
    for tier, measured in found.items():
        if tier == "dense":
            continue
        if measured.own.backend != "sparsity" or not measured.own.proof.sparse_kernel_calls:
            wrong.append(f"{tier}: the backend {measured.own.backend} proved nothing at start")
        if not measured.sparse_calls[longest] or measured.density[longest] >= 1:
            wrong.append(f"{tier}: {longest} tokens were attended whole")
        equal = sum(a == b for a, b in zip(measured.answers, found["dense"].answers, strict=True))
        if equal < _PARITY * len(measured.answers):
            wrong.append(f"{tier}: of {len(measured.answers)} short prompts only {equal} get dense attention's token")
    return wrong


def rows(found: Mapping[str, Measured], plan: Plan) -> Iterator[Row]:
    """The figures, dense beside each."""
    dense = found["dense"]
    baseline = f"dense, {dense.own.backend}"
    for tier, own in found.items():
        for length in plan.prompts:
            shape = f"{plan.name}, {length} tokens, density {own.density[length]:.3f}"
            goal = _SHORT if length <= _SHORT_TO else _FIRST.get(tier, {}).get(length)
            row = Row(f"{tier}: time to first token", shape, own.first[length], "s")
            yield row if tier == "dense" else _beside(row, baseline, dense.first[length], goal)
        for batch in plan.batches:
            shape = f"{plan.name}, {batch} x {plan.context} tokens, density {own.decode_density[batch]:.3f}"
            goal = _DECODE if (tier, batch) == ("aggressive", _DECODE_BATCH) else None
            row = Row(f"{tier}: time per output token", shape, own.per_token[batch], "s")
            yield row if tier == "dense" else _beside(row, baseline, dense.per_token[batch], goal)
        short, long = plan.load_lengths
        load = f"{plan.load} requests, a fifth of {long} tokens, the rest of {short}, {plan.rate:g} a second"
        yield Row(f"{tier}: throughput of a mixed load", load, own.throughput, "tokens/s")
        for name, value in zip(("median", "99th percentile"), own.load_first, strict=True):
            yield Row(f"{tier}: time to first token of its short requests, {name}", load, value, "s")
        yield Row(f"{tier}: page summaries", plan.name, own.own.engine.summary_bytes / 2**20, "MiB")


def _beside(row: Row, baseline: str, dense: float, goal: float | None) -> Row:
    assert row.value
    found = against(row, baseline, dense)
    return found if goal is None else judged(found, f">= {goal:g} times", met=dense / row.value >= goal)
