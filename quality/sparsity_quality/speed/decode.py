"""Decode beside dense attention: selection included, replayed from a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from sparse_kernels import DecodeConfig
from sparse_kernels.gpu.decode_batch import DecodeBatch, DecodeWorkspace
from sparse_kernels.gpu.page_selection import page_capacity
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparsity.benchmark import Row, against, judged

from sparsity_quality.speed.inputs import PAGE, Inputs, Shape, inputs
from sparsity_quality.speed.timing import copy_tbps, median_ms, replayed

BUDGETS: Mapping[str, int] = {"aggressive": 2048, "moderate": 4096}
# Times the fastest dense decode, by context, at many sequences; and what a single one must not lose.
_GOALS: Mapping[str, Mapping[int, float]] = {
    "aggressive": {8192: 2.2, 16384: 4.5, 32768: 8.0, 65536: 12.0, 131072: 15.0},
    "moderate": {8192: 1.0, 16384: 2.6, 32768: 5.0, 65536: 5.0, 131072: 5.0},
}
_MANY, _SINGLE_FROM, _BANDWIDTH = 16, 16384, 0.75


def rows(shape: Shape, length: int, sequences: int, device: str, dtype: torch.dtype) -> Iterator[Row]:
    """What one step of ``sequences`` contexts of ``length`` tokens takes."""
    given = inputs(shape, length * sequences, device, dtype, queries=sequences)
    blocks = length // PAGE
    tables = given.sequence.table[: blocks * sequences].view(sequences, blocks).int().contiguous()
    lengths = torch.full((sequences,), length, dtype=torch.int32, device=device)
    batch = DecodeBatch(given.sequence.keys, given.sequence.values, tables, lengths)
    what = f"{shape}, {sequences} x {length} tokens"
    dense = {"torch's attention, contiguous": _sdpa(given, sequences, length, device)}
    workspace = DecodeWorkspace.of(given.q, batch, page_capacity(DecodeConfig(budget=max(BUDGETS.values())), PAGE))
    ours = replayed(lambda: paged_decode(given.q, batch, given.scale, workspace=workspace), device)
    dense["ours, all pages"] = median_ms(ours, device)
    for name, taken in dense.items():
        yield Row(f"dense decode, {name}", what, taken, "ms")
    fastest = min(dense, key=lambda name: dense[name])
    bandwidth = copy_tbps(device)
    for tier, budget in BUDGETS.items():
        config = DecodeConfig(
            sparse_from=0, budget=min(budget, length), sink=64, recent=min(512, length // 4), score="sub_pages"
        )

        def step(config: DecodeConfig = config) -> torch.Tensor:
            return sparse_paged_decode(
                given.q, batch, given.summaries, config, given.scale, workspace=workspace
            )  # fmt: skip

        taken = median_ms(replayed(step, device), device)
        ratio = dense[fastest] / taken
        row = against(Row(f"decode, {tier}, {budget} tokens", what, taken, "ms"), fastest, dense[fastest])
        goal = _GOALS[tier].get(length) if sequences >= _MANY else None
        if goal is None and sequences == 1 and length > _SINGLE_FROM:
            goal = 1.0
        yield judged(row, f">= {goal:g} times", met=ratio >= goal) if goal else row
        share = _bytes(shape, min(budget, length), length, given) * sequences / (taken * 1e-3) / 1e12 / bandwidth
        kept = Row(f"decode, {tier}, of copy bandwidth ({bandwidth:.2f} TB/s)", what, share, "share")
        bounded = judged(kept, f">= {_BANDWIDTH:g}", met=share >= _BANDWIDTH)
        yield bounded if sequences >= _MANY else kept


def _bytes(shape: Shape, budget: int, length: int, given: Inputs) -> float:
    """Read for one sequence: kept keys and values, and the summaries of all pages."""
    kept = budget * 2 * shape.dim * given.q.element_size()
    summary = length / PAGE * given.summaries.sub_mean.shape[1] * shape.dim * given.summaries.sub_mean.element_size()
    return float(shape.kv_heads * (kept + summary))


def _sdpa(given: Inputs, sequences: int, length: int, device: str) -> float:
    keys, values = (
        part.view(part.shape[1], -1, length, part.shape[3])[:, :sequences].transpose(0, 1).contiguous()
        for part in given.contiguous()
    )
    q = given.q[:, :, None].contiguous()

    def run() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, keys, values, scale=given.scale, enable_gqa=True)

    return median_ms(replayed(run, device), device)
