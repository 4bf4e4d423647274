"""Coverage that is measured on a few rows against every key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_kernels import DecodeConfig, PrefillConfig, block_sparse_prefill_cpu, sparse_paged_decode_cpu
from sparse_kernels.measured_coverage import measured_coverage, spread_rows
from support.kernels.paging import PAGE, paged, queries

CONFIG = PrefillConfig(
    score="sampled_rows", rule="top_p", threshold=0.6, query_tile=32, query_stride=1, sink=0, window=0,
    dense_last_tiles=0,
)  # fmt: skip


def test_it_is_the_mass_on_attended_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    q, keys = torch.randn(3, 4, 8, generator=generator), torch.randn(2, 5, PAGE, 8, generator=generator)
    positions, attended = torch.tensor([3, 40, 79]), torch.rand(2, 3, 5, generator=generator) < 0.5
    shares = []
    for row, position in enumerate(positions.tolist()):
        for head in range(4):
            scores = keys[head // 2].flatten(0, 1)[: position + 1].double() @ q[row, head].double() * 0.3
            mask = attended[head // 2, row].repeat_interleave(PAGE)[: position + 1]
            shares.append(float((scores.softmax(-1) * mask).sum()))
    assert measured_coverage(q, positions, keys, attended, 0.3) == pytest.approx(sum(shares) / 12, abs=1e-6)


@pytest.mark.parametrize(("prefix", "new"), [(0, 200), (70, 130), (0, 111)])
def test_prefill_measures_what_it_estimates_exactly_where_every_row_is_sampled(prefix: int, new: int) -> None:
    sequence, summaries = paged(prefix + new)
    q = 2 * queries(new)
    _, stats = block_sparse_prefill_cpu(q, sequence, summaries, CONFIG, 0.35, measured_rows=new)
    assert stats.measured_rows == new
    assert stats.measured < 0.99
    assert stats.measured == pytest.approx(stats.coverage, abs=1e-4)
    _, few = block_sparse_prefill_cpu(q, sequence, summaries, CONFIG, 0.35, measured_rows=8)
    assert few.measured_rows == 8
    assert few.measured == pytest.approx(stats.measured, abs=0.1)


def test_a_full_index_keeps_all_and_nothing_is_measured_unasked() -> None:
    sequence, summaries = paged(150)
    full = PrefillConfig(threshold=0.0, query_tile=32)
    _, stats = block_sparse_prefill_cpu(queries(150), sequence, summaries, full, 0.35, measured_rows=5)
    assert stats.measured == pytest.approx(1.0)
    _, plain = block_sparse_prefill_cpu(queries(150), sequence, summaries, full, 0.35)
    assert (plain.measured, plain.measured_rows) == (1.0, 0)


def test_decode_measures_its_row() -> None:
    sequence, summaries = paged(333)
    q = 2 * queries(1)[0]
    config = DecodeConfig(sparse_from=0, budget=96, sink=16, recent=32)
    _, stats = sparse_paged_decode_cpu(q, sequence, summaries, config, 0.35, measured=True)
    assert stats.measured_rows == 1
    assert 0.2 < stats.measured < 0.99
    whole = DecodeConfig(sparse_from=0, budget=336, sink=16, recent=32)
    assert sparse_paged_decode_cpu(q, sequence, summaries, whole, 0.35, measured=True)[1].measured == pytest.approx(1.0)


@given(st.integers(0, 1000), st.integers(0, 300), st.integers(0, 20))
def test_rows_are_spread_and_lie_within(first: int, count: int, wanted: int) -> None:
    rows = spread_rows(first, count, wanted).tolist()
    assert len(set(rows)) == len(rows) == min(count, wanted)
    assert all(first <= row < first + count for row in rows)
    assert rows == sorted(rows)
