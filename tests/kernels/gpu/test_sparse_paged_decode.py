from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sparse_kernels import DecodeConfig, PagedSequence, PageSummaries, dense_attention
from sparse_kernels import select_pages as select_pages_cpu
from sparse_kernels.gpu.page_selection import page_capacity, page_counts, select_pages
from sparse_kernels.gpu.sparse_paged_decode import DecodeBatch, sparse_paged_decode
from sparse_kernels.reference import sparse_paged_decode_reference
from support.devices import EXACT, launch
from support.paging import PAGE, joined, queries, rms_ratio

HEADS, DIM = 4, 16
SCALE = DIM**-0.5
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 200, 333]
CONFIG = DecodeConfig(sparse_from=0, budget=96, sink=16, recent=32)


def batch_of(sequences: list[PagedSequence]) -> DecodeBatch:
    widest = max(sequence.table.numel() for sequence in sequences)
    # Past a sequence's end anything may stand in the table.
    tables = torch.randint(0, 5, (len(sequences), widest), dtype=torch.int32)
    for row, sequence in zip(tables, sequences, strict=True):
        row[: sequence.table.numel()] = sequence.table
    lengths = torch.tensor([sequence.length for sequence in sequences], dtype=torch.int32)
    return DecodeBatch(sequences[0].keys, sequences[0].values, tables, lengths)


class Case:
    """A batch of sequences with one query row each."""

    def __init__(
        self, lengths: list[int], heads: int = HEADS, dtype: torch.dtype = torch.float32, dim: int = DIM
    ) -> None:
        self.sequences, self.summaries = joined(lengths, dim=dim, dtype=dtype)
        self.q = queries(len(lengths), heads, dim, dtype=dtype)
        self.batch = batch_of(self.sequences)

    def pages(self, config: DecodeConfig = CONFIG) -> torch.Tensor:
        return launch(select_pages, self.q, self.batch, self.summaries, config, SCALE)

    def valid(self, pages: torch.Tensor, number: int) -> torch.Tensor:
        """The pages of one sequence that count, ``[Hkv, n]``."""
        count = min(pages.shape[2], self.sequences[number].table.numel())
        return pages[number, :, :count].long()


@pytest.mark.parametrize("heads", [2, 4, 6, 32])
def test_matches_the_reference(heads: int) -> None:
    case = Case(LENGTHS, heads)
    pages = case.pages()
    out = launch(sparse_paged_decode, case.q, case.batch, pages, SCALE)
    for number, sequence in enumerate(case.sequences):
        wanted = sparse_paged_decode_reference(case.q[number], sequence, case.valid(pages, number), SCALE)
        assert rms_ratio(out[number], wanted) < EXACT, LENGTHS[number]


@pytest.mark.parametrize("score", ["spread", "sub_pages"])
@pytest.mark.parametrize(("heads", "dtype"), [(2, torch.float32), (6, torch.float16), (32, torch.float32)])
def test_chooses_what_the_cpu_chooses(score: str, heads: int, dtype: torch.dtype) -> None:
    case, config = Case(LENGTHS, heads, dtype=dtype), replace(CONFIG, score=score)
    assert case.summaries.mean.dtype == dtype
    pages = case.pages(config)
    for number, sequence in enumerate(case.sequences):
        wanted, _ = select_pages_cpu(case.q[number], sequence, case.summaries, config, SCALE)
        assert torch.equal(case.valid(pages, number).sort(-1).values[:, : wanted.shape[1]], wanted), LENGTHS[number]


def test_equals_dense_when_all_pages_fit() -> None:
    case = Case(LENGTHS)
    pages = case.pages(DecodeConfig(sparse_from=0, budget=336, sink=16, recent=32))
    out = launch(sparse_paged_decode, case.q, case.batch, pages, SCALE)
    for number, sequence in enumerate(case.sequences):
        assert rms_ratio(out[number], dense_attention(case.q[number : number + 1], sequence, SCALE)[0][0]) < EXACT


def test_lengths_may_grow_under_the_same_shapes() -> None:
    # As a replayed graph does it: the same tensors, other lengths in them.
    case = Case([333, 333])
    whole = case.sequences[0]
    for length in (1, 16, 17, 150, 333):
        case.batch.lengths[0] = length
        cut = whole._replace(length=length, table=whole.table[: -(-length // PAGE)])
        case.sequences[0] = cut
        case.summaries.mark(cut.table)
        case.summaries.refresh(cut)
        pages = case.pages()
        out = launch(sparse_paged_decode, case.q, case.batch, pages, SCALE)
        wanted = sparse_paged_decode_reference(case.q[0], cut, case.valid(pages, 0), SCALE)
        assert rms_ratio(out[0], wanted) < EXACT


def test_short_sequences_and_those_held_dense_attend_all_they_have() -> None:
    case, config = Case(LENGTHS), replace(CONFIG, sparse_from=201)
    held = torch.tensor([length == 333 for length in LENGTHS])
    counts = launch(page_counts, case.batch, config, held)
    assert counts.tolist() == [-(-length // PAGE) for length in LENGTHS]
    assert [launch(page_counts, case.batch, each).tolist()[-1] for each in (config, CONFIG)] == [6, 6]
    assert launch(page_counts, case.batch, CONFIG).tolist()[-2] == 6
    out = launch(sparse_paged_decode, case.q, case.batch, case.pages(config), SCALE, counts)
    for number, sequence in enumerate(case.sequences):
        assert rms_ratio(out[number], dense_attention(case.q[number : number + 1], sequence, SCALE)[0][0]) < EXACT


@pytest.mark.parametrize("dim", [16, 64, 128])
def test_dtypes_are_near_the_definition(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    case = Case([200, 64], dtype=dtype, dim=dim)
    pages = case.pages()
    out = launch(sparse_paged_decode, case.q, case.batch, pages, dim**-0.5)
    assert out.dtype == dtype
    for number, sequence in enumerate(case.sequences):
        wanted = sparse_paged_decode_reference(case.q[number], sequence, case.valid(pages, number), dim**-0.5)
        assert rms_ratio(out[number], wanted) < tolerance


def test_sink_and_recent_pages_are_always_there() -> None:
    case = Case([333])
    case.summaries.mean.zero_()
    case.summaries.mean[case.sequences[0].table[5:9]] = 1e4
    pages = case.valid(case.pages(DecodeConfig(sparse_from=0, budget=64, sink=16, recent=32)), 0)
    for head in pages.tolist():
        assert {0, 18, 19, 20} <= set(head)
        assert len(set(head)) == len(head)


def test_the_capacity_holds_what_is_always_kept() -> None:
    assert page_capacity(DecodeConfig(budget=2048, sink=64, recent=512), 64) == 32
    # Recent tokens that do not begin at a page's start lie on one page more.
    assert page_capacity(DecodeConfig(budget=320, sink=64, recent=256), 64) == 6


def test_what_does_not_fit_is_named() -> None:
    case = Case([40, 50])
    pages = case.pages()
    with pytest.raises(ValueError, match="pages: "):
        sparse_paged_decode(case.q, case.batch, pages[:1], SCALE)
    with pytest.raises(ValueError, match="pages: "):
        sparse_paged_decode(case.q, case.batch, pages.long(), SCALE)
    with pytest.raises(ValueError, match="q: 3 query heads are not a multiple of 2"):
        sparse_paged_decode(case.q[:, :3], case.batch, pages, SCALE)
    with pytest.raises(ValueError, match="q: head dimension 8 must be that of the keys, 16"):
        sparse_paged_decode(case.q[..., :8], case.batch, pages, SCALE)
    with pytest.raises(ValueError, match="batch: tables and lengths are not those of 1 sequences"):
        sparse_paged_decode(case.q[:1], case.batch, pages, SCALE)
    with pytest.raises(ValueError, match="counts: "):
        sparse_paged_decode(case.q, case.batch, pages, SCALE, torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="summaries: "):
        select_pages(case.q, case.batch, joined([40])[1], CONFIG, SCALE)
    odd = PageSummaries(case.summaries.mean.shape[0], PAGE, 2, DIM, 4)
    odd.sub_mean = odd.sub_mean[:, :3]
    with pytest.raises(ValueError, match="summaries: 3 sub-pages a page do not divide 64"):
        select_pages(case.q, case.batch, odd, replace(CONFIG, score="sub_pages"), SCALE)
