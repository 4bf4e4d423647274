from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_kernels import PageSummaries, TileGrid
from support.kernels.paging import PAGE, SUB, paged


@pytest.mark.parametrize("length", [1, 3, 16, 17, 50])
def test_means_and_spread(length: int) -> None:
    sequence, summaries = paged(length)
    for block, page in enumerate(sequence.table.tolist()):
        keys = sequence.keys[page, : min(PAGE, length - block * PAGE)]
        values = sequence.values[page, : keys.shape[0]]
        torch.testing.assert_close(summaries.mean[page], keys.mean(0))
        torch.testing.assert_close(summaries.value_mean[page], values.mean(0))
        spread = keys.var(0, unbiased=False).mean(-1).sqrt()
        torch.testing.assert_close(summaries.spread[page], spread, atol=2e-3, rtol=1e-3)
        for number, part in enumerate(keys.split(SUB)):
            torch.testing.assert_close(summaries.sub_mean[page, number], part.mean(0))
            assert summaries.sub_count[page, number] == part.shape[0]


def test_an_update_touches_only_its_pages() -> None:
    sequence, summaries = paged(64)
    before = summaries.mean.clone()
    page = int(sequence.table[1])
    sequence.keys[page] += 1.0
    summaries.update(sequence.keys, sequence.values, torch.tensor([page]), torch.tensor([PAGE]))
    changed = (summaries.mean != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [page]


def test_a_write_is_summarized_when_it_is_first_needed() -> None:
    sequence, summaries = paged(60)
    before = summaries.mean.clone()
    sequence.keys[sequence.table[3], :12] += 1.0
    summaries.refresh(sequence)
    assert torch.equal(summaries.mean, before)
    summaries.mark(sequence.table[3:])
    summaries.refresh(sequence)
    torch.testing.assert_close(summaries.mean[sequence.table[3]], sequence.keys[sequence.table[3], :12].mean(0))
    assert torch.equal(summaries.mean[sequence.table[:3]], before[sequence.table[:3]])


def test_growing_a_page_token_by_token_ends_where_one_update_does() -> None:
    sequence, once = paged(48)
    grown = PageSummaries(6, PAGE, 2, 8, SUB)
    for length in range(1, 49):
        page = sequence.table[(length - 1) // PAGE].view(1)
        grown.update(sequence.keys, sequence.values, page, torch.tensor([(length - 1) % PAGE + 1]))
    for name in ("mean", "value_mean", "spread", "sub_mean", "sub_count"):
        torch.testing.assert_close(getattr(grown, name)[sequence.table], getattr(once, name)[sequence.table])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="sub_page"):
        PageSummaries(2, 16, 1, 8, 5)
    sequence, summaries = paged(20)
    with pytest.raises(ValueError, match="filled"):
        summaries.update(sequence.keys, sequence.values, sequence.table, torch.tensor([1]))


@settings(max_examples=100)
@given(prefix=st.integers(0, 300), queries=st.integers(1, 300), tile=st.sampled_from([16, 32, 64]))
def test_grid_split_and_join_are_inverse(prefix: int, queries: int, tile: int) -> None:
    grid = TileGrid.of(prefix, queries, tile)
    rows = torch.arange(1, queries + 1).view(-1, 1, 1)
    laid = grid.split(rows)
    assert torch.equal(grid.join(laid), rows)
    assert int(grid.valid.sum()) == queries
    positions = grid.starts[:, None] + torch.arange(tile)
    assert torch.equal(positions[grid.valid], torch.arange(prefix, prefix + queries))
    assert (laid.flatten()[~grid.valid.flatten()] == 0).all()
