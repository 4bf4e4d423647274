from __future__ import annotations

import pytest
import torch
from sparse_kernels import DecodeConfig, dense_attention, select_pages_cpu, sparse_paged_decode_cpu
from sparse_kernels.config import PAGE_SCORE_NAMES
from sparse_kernels.cpu.sparse_paged_decode import PAGE_SCORES, Pages
from sparse_kernels.reference.sparse_paged_decode import sparse_paged_decode_reference
from support.kernels.paging import PAGE, paged, queries, rms_ratio

SCALE = 8**-0.5


@pytest.mark.parametrize("length", [1, 15, 16, 17, 111, 320])
def test_budget_over_length_equals_dense(length: int) -> None:
    sequence, summaries = paged(length)
    q = queries(1)
    out, stats = sparse_paged_decode_cpu(q[0], sequence, summaries, DecodeConfig(budget=512, sink=16, recent=16), SCALE)
    dense, _ = dense_attention(q, sequence, SCALE)
    assert rms_ratio(out, dense[0]) < 1e-5
    assert stats.density == 1.0


@pytest.mark.parametrize("score", PAGE_SCORES)
@pytest.mark.parametrize("length", [100, 111, 320, 333])
def test_matches_the_reference(length: int, score: str) -> None:
    sequence, summaries = paged(length)
    q = queries(1)[0]
    chosen = DecodeConfig(budget=64, sink=16, recent=16, score=score)
    pages, coverage = select_pages_cpu(q, sequence, summaries, chosen, SCALE)
    out, stats = sparse_paged_decode_cpu(q, sequence, summaries, chosen, SCALE)
    assert rms_ratio(out, sparse_paged_decode_reference(q, sequence, pages, SCALE)) < 1e-5
    assert stats.attended < stats.causal == 4 * length
    assert ((coverage > 0) & (coverage <= 1)).all()


def test_sink_and_recent_pages_are_always_kept() -> None:
    sequence, summaries = paged(333)
    pages, _ = select_pages_cpu(queries(1)[0], sequence, summaries, DecodeConfig(budget=96, sink=32, recent=32), SCALE)
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
    pages, _ = select_pages_cpu(q, sequence, summaries, DecodeConfig(budget=48, sink=16, recent=16), SCALE)
    assert all(9 in head for head in pages.tolist())


def test_one_key_that_answers_is_found_by_its_sub_page() -> None:
    sequence, summaries = paged(320)
    q = queries(1)[0]
    page = int(sequence.table[9])
    # The other keys of the page point the other way, so that its mean says nothing.
    wanted = q.view(2, 2, 8).mean(1)
    sequence.keys[page] = -3.0 * wanted
    sequence.keys[page, :4] = 9.0 * wanted
    summaries.update(sequence.keys, sequence.values, torch.tensor([page]), torch.tensor([PAGE]))
    found = {}
    for score in PAGE_SCORES:
        config = DecodeConfig(budget=48, sink=16, recent=16, score=score)
        found[score] = [9 in head for head in select_pages_cpu(q, sequence, summaries, config, SCALE)[0].tolist()]
    assert all(found["sub_pages"])


def test_sub_page_scores_are_logarithms_of_shares_of_softmax_mass() -> None:
    sequence, summaries = paged(100)
    q = queries(1)[0].view(2, 2, 8)
    summaries.refresh(sequence)
    at = Pages(
        *(part[sequence.table] for part in (summaries.mean, summaries.spread, summaries.sub_mean, summaries.sub_count))
    )
    found = PAGE_SCORES["sub_pages"](q, at, SCALE)
    keys = sequence.gather()[0].flatten(1, 2)[:, :100]
    for head in range(2):
        best = torch.zeros(7)
        for query in q[head]:
            groups = keys[head].split(4)
            scores = torch.stack(
                [group.mean(0) @ query * SCALE + torch.tensor(float(len(group))).log() for group in groups]
            )
            shares = scores.softmax(0)
            pages = torch.stack([part.sum() for part in shares.split(4)])
            best = torch.maximum(best, pages)
        torch.testing.assert_close(found[head], best.log())


def test_bad_arguments_are_named() -> None:
    assert tuple(PAGE_SCORES) == PAGE_SCORE_NAMES
    with pytest.raises(ValueError, match="score: must be one of spread, sub_pages, not 'x'"):
        DecodeConfig(score="x")
    with pytest.raises(ValueError, match="budget"):
        DecodeConfig(budget=10, sink=16, recent=16)
    sequence, summaries = paged(40)
    with pytest.raises(ValueError, match="3 query heads"):
        sparse_paged_decode_cpu(queries(1, heads=3)[0], sequence, summaries, DecodeConfig(), SCALE)
