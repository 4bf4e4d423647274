from __future__ import annotations

import pytest
import torch
from sparse_kernels import DecodeConfig, dense_attention, select_pages, sparse_paged_decode
from sparse_kernels.reference import sparse_paged_decode_reference
from support.paging import PAGE, paged, queries, rms_ratio

SCALE = 8**-0.5


@pytest.mark.parametrize("length", [1, 15, 16, 17, 111, 320])
def test_budget_over_length_equals_dense(length: int) -> None:
    sequence, summaries = paged(length)
    q = queries(1)
    out, stats = sparse_paged_decode(q[0], sequence, summaries, DecodeConfig(budget=512, sink=16, recent=16), SCALE)
    dense, _ = dense_attention(q, sequence, SCALE)
    assert rms_ratio(out, dense[0]) < 1e-5
    assert stats.density == 1.0


@pytest.mark.parametrize("length", [100, 111, 320, 333])
def test_matches_the_reference(length: int) -> None:
    sequence, summaries = paged(length)
    q = queries(1)[0]
    chosen = DecodeConfig(budget=64, sink=16, recent=16)
    pages, coverage = select_pages(q, sequence, summaries, chosen, SCALE)
    out, stats = sparse_paged_decode(q, sequence, summaries, chosen, SCALE)
    assert rms_ratio(out, sparse_paged_decode_reference(q, sequence, pages, SCALE)) < 1e-5
    assert stats.attended < stats.causal == 4 * length
    assert ((coverage > 0) & (coverage <= 1)).all()


def test_sink_and_recent_pages_are_always_kept() -> None:
    sequence, summaries = paged(333)
    pages, _ = select_pages(queries(1)[0], sequence, summaries, DecodeConfig(budget=96, sink=32, recent=32), SCALE)
    last = 333 // PAGE
    for head in pages.tolist():
        assert {0, 1, last, last - 1} <= set(head)
        assert head == sorted(head)


def test_finds_the_page_that_answers() -> None:
    sequence, summaries = paged(320)
    q = queries(1)[0]
    page = int(sequence.table[9])
    sequence.keys[page] = 6.0 * q.view(2, 2, 8).mean(1)
    summaries.update(sequence.keys, sequence.values, torch.tensor([page]), torch.tensor([PAGE]))
    pages, _ = select_pages(q, sequence, summaries, DecodeConfig(budget=48, sink=16, recent=16), SCALE)
    assert all(9 in head for head in pages.tolist())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="budget"):
        DecodeConfig(budget=10, sink=16, recent=16)
    sequence, summaries = paged(40)
    with pytest.raises(ValueError, match="3 query heads"):
        sparse_paged_decode(queries(1, heads=3)[0], sequence, summaries, DecodeConfig(), SCALE)
