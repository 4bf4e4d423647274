"""What does not fit is named before a launch: shapes, dtypes and devices always, what tensors hold on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparse_kernels import DecodeConfig, PageSummaries, PrefillConfig
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.gpu.block_sparse_prefill import block_sparse_prefill
from sparse_kernels.gpu.decode_batch import DecodeBatch
from sparse_kernels.gpu.page_limits import PageLimits
from sparse_kernels.gpu.page_selection import select_pages
from sparse_kernels.gpu.page_summaries import summarize_pages
from sparse_kernels.gpu.sparse_paged_decode import paged_decode, sparse_paged_decode
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from support.kernels.devices import DEVICE, INTERPRETED, on
from support.kernels.paging import PAGE, SUB, joined, queries

HEADS, KV_HEADS, DIM, TILE = 4, 2, 16, 32
SCALE = DIM**-0.5
CONFIG = PrefillConfig(
    score="sub_means", rule="top_p", threshold=0.7, query_tile=TILE, query_stride=8, sink=16, window=16,
    dense_last_tiles=0,
)  # fmt: skip
DECODE = DecodeConfig(sparse_from=0, budget=64, sink=16, recent=16, score="sub_pages")
# Prefix and queries of each sequence.
COUNTS = [(64, 70), (0, 100)]

# Elsewhere what tensors hold is looked at when asked.
here = pytest.mark.skipif(not INTERPRETED, reason="CPU tensors, which only the interpreter reads")


class Prefill:
    """A batch of prefill on the CPU, and the calls that tests spoil."""

    def __init__(self) -> None:
        sequences, self.summaries = joined([prefix + new for prefix, new in COUNTS], KV_HEADS, DIM)
        new = [each for _, each in COUNTS]
        self.q = queries(sum(new), HEADS, DIM)
        self.batch = PagedBatch.of(sequences, new, TILE)
        self.index = BlockIndex.full(self.batch.before, KV_HEADS, self.batch.tables.shape[1])
        self.totals = self.batch.lengths

    def select(self, **changed: Any) -> None:
        given = {"q": self.q, "batch": self.batch, "summaries": self.summaries, "config": CONFIG, "scale": SCALE}
        select_blocks(**{**given, "totals": self.totals, **changed})

    def attend(self, **changed: Any) -> None:
        block_sparse_prefill(**{"q": self.q, "batch": self.batch, "index": self.index, "scale": SCALE, **changed})


class Decode:
    """A batch of decode on the CPU."""

    def __init__(self) -> None:
        sequences, self.summaries = joined([300, 200], KV_HEADS, DIM)
        widest = max(sequence.table.numel() for sequence in sequences)
        tables = torch.full((2, widest), 2**30, dtype=torch.int32)
        for row, sequence in zip(tables, sequences, strict=True):
            row[: sequence.table.numel()] = sequence.table
        self.q, lengths = queries(2, HEADS, DIM), torch.tensor([300, 200], dtype=torch.int32)
        self.batch = DecodeBatch(sequences[0].keys, sequences[0].values, tables, lengths)

    def attend(self, **changed: Any) -> torch.Tensor:
        given = {"q": self.q, "batch": self.batch, "summaries": self.summaries, "config": DECODE, "scale": SCALE}
        select_pages(**{**given, **changed})
        return sparse_paged_decode(**{**given, **changed})

    def whole(self, **changed: Any) -> torch.Tensor:
        return paged_decode(**{"q": self.q, "batch": self.batch, "scale": SCALE, **changed})


def other_summaries(pages: int, dtype: torch.dtype = torch.float32) -> PageSummaries:
    made = PageSummaries(pages, PAGE, KV_HEADS, DIM, SUB, dtype=dtype)
    made.stale[:] = False
    return made


def spoilt(given: torch.Tensor, at: tuple[int, ...], value: int) -> torch.Tensor:
    """A copy with one number that is another."""
    changed = given.clone()
    changed[at] = value
    return changed


def test_selection_names_what_is_of_another_cache_or_batch() -> None:
    case = Prefill()
    pages = case.batch.keys.shape[0]
    for changed, message in (
        ({"summaries": other_summaries(pages - 1)}, "summaries: are of "),
        ({"summaries": other_summaries(pages, torch.float16)}, "summaries: of torch.float16, the queries are of"),
        ({"q": case.q.half()}, "q: of torch.float16, the cache of torch.float32"),
        ({"q": case.q[:-1]}, "q: 169 rows, the batch has 170"),
        ({"totals": case.totals[:1]}, "totals, dense: must be one of each of the 2 sequences"),
        ({"q": case.q.to("meta")}, "keys, values: on cpu, the queries are on meta"),
        ({"totals": case.totals.to("meta")}, "totals, dense: on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            case.select(**changed)


def test_prefill_names_what_is_of_another_cache_or_batch() -> None:
    case = Prefill()
    batch, index = case.batch, case.index
    for changed, message in (
        ({"q": case.q.half()}, "q: of torch.float16, the cache of torch.float32"),
        ({"q": case.q[:-1]}, "q: 169 rows, the batch has 170"),
        ({"batch": batch._replace(values=batch.values[:-1])}, "values: are of "),
        ({"batch": batch._replace(values=batch.values.half())}, "the cache of torch.float32 and torch.float16"),
        ({"batch": batch._replace(tables=batch.tables.long())}, "batch: tables, lengths, .* int32, not torch.int64"),
        ({"batch": batch._replace(starts=batch.starts[:-1])}, "batch: lengths, starts and tiles are not those of 2"),
        ({"batch": batch._replace(lengths=batch.lengths[:1])}, "batch: lengths, starts and tiles are not those of 2"),
        ({"batch": batch._replace(tables=batch.tables.to("meta"))}, "batch: on meta, the queries are on cpu"),
        ({"index": index._replace(blocks=index.blocks.long())}, "index: .* must be int32, not .* torch.int64"),
        ({"index": index._replace(blocks=index.blocks.to("meta"))}, "index: on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            case.attend(**changed)


@here
def test_what_prefill_would_follow_out_of_its_tensors_is_named() -> None:
    case = Prefill()
    batch, index = case.batch, case.index
    # Of the last tile, which has most before it.
    last = (0, int(batch.before.argmax()))
    most = int(batch.before.max())
    own = BlockIndex.of(index.kept(batch.tables.shape[1]))
    shared_by_all = "index: counts are of another batch"
    for changed, message in (
        (
            {"batch": batch._replace(tables=spoilt(batch.tables, (0, 2), 2**20))},
            "batch: tables hold pages .* to 1048576",
        ),
        ({"batch": batch._replace(tables=spoilt(batch.tables, (1, 0), -1))}, "batch: tables hold pages -1 to"),
        ({"batch": batch._replace(lengths=spoilt(batch.lengths, (0,), 2000))}, "batch: lengths from 100 to 2000"),
        ({"batch": batch._replace(starts=spoilt(batch.starts, (2,), 400))}, "batch: starts and tiles are not of these"),
        (
            {"batch": batch._replace(lengths=spoilt(batch.lengths, (0,), 71))},
            "batch: starts and tiles are not of these",
        ),
        ({"index": index._replace(counts=spoilt(index.counts, last, most + 1))}, shared_by_all),
        ({"index": index._replace(counts=spoilt(index.counts, last, -1))}, shared_by_all),
        ({"index": index._replace(starts=spoilt(index.starts, last, 3))}, "index: starts and counts go past the 9"),
        ({"index": own._replace(blocks=spoilt(own.blocks, (-1,), 4000))}, "index: blocks hold some that do not lie"),
        # One of the tile's own, which it would attend twice.
        ({"index": own._replace(blocks=spoilt(own.blocks, (0,), 4))}, "index: blocks hold some that do not lie"),
    ):
        with pytest.raises(ValueError, match=message):
            case.attend(**changed)
    sequence = batch.tiles._replace(sequence=spoilt(batch.tiles.sequence, (0,), 2))
    with pytest.raises(ValueError, match="batch: tiles of sequence 2, there are 2"):
        case.attend(batch=batch._replace(tiles=sequence))
    case.attend()


@here
def test_selection_by_stale_summaries_is_refused_where_they_are_read() -> None:
    case = Prefill()
    page = int(case.batch.tables[1, 0])
    case.summaries.stale[page] = True
    with pytest.raises(ValueError, match="summaries: 1 of 16 pages that are read are stale"):
        case.select()
    # Of a sequence that keeps everything, and of one without a tile, nobody reads them.
    case.select(dense=torch.tensor([False, True]))
    case.summaries.stale[page] = False
    case.select()


@here
@pytest.mark.parametrize("whole", [False, True])
def test_what_decode_would_follow_out_of_its_cache_is_named(whole: bool) -> None:
    case = Decode()
    batch = case.batch
    for changed, message in (
        (
            {"batch": batch._replace(tables=spoilt(batch.tables, (1, 0), 2**20))},
            "batch: tables hold pages .* to 1048576",
        ),
        ({"batch": batch._replace(tables=spoilt(batch.tables, (0, 18), -3))}, "batch: tables hold pages -3 to"),
        ({"batch": batch._replace(lengths=spoilt(batch.lengths, (0,), 305))}, "batch: lengths from 200 to 305"),
        ({"batch": batch._replace(lengths=spoilt(batch.lengths, (0,), -1))}, "batch: lengths from -1 to 200"),
        ({"batch": batch._replace(lengths=batch.lengths.to("meta"))}, "batch: on meta"),
        ({"q": case.q.to("meta")}, "keys, values: on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            case.whole(**changed) if whole else case.attend(**changed)


@here
def test_decode_by_summaries_that_are_stale_or_of_fewer_pages_is_refused() -> None:
    case = Decode()
    pages = case.batch.keys.shape[0]
    with pytest.raises(ValueError, match="summaries: are of "):
        case.attend(summaries=other_summaries(pages - 1))
    # The newest page is summarized on the way, unless it is said to be.
    newest, earlier = int(case.batch.tables[0, 18]), int(case.batch.tables[0, 3])
    case.summaries.stale[newest] = True
    case.attend()
    case.summaries.stale[newest] = True
    with pytest.raises(ValueError, match="summaries: 1 of 32 pages that are read are stale"):
        case.attend(summarized=True)
    case.summaries.stale[earlier] = True
    with pytest.raises(ValueError, match="summaries: 1 of 30 pages that are read are stale"):
        case.attend()
    # Nobody reads those of sequences that attend everything.
    case.attend(dense=torch.tensor([True, False]))
    kinds = torch.tensor([0, 1], dtype=torch.int32)
    case.attend(limits=PageLimits.of(kinds, [None, DECODE], PAGE))
    with pytest.raises(ValueError, match="limits: kinds up to 2, the table has 2"):
        case.attend(limits=PageLimits.of(kinds + 1, [None, DECODE], PAGE))


@here
def test_summaries_are_not_written_past_their_end() -> None:
    case = Decode()
    keys, values = case.batch.keys, case.batch.values
    pages, filled = torch.tensor([keys.shape[0]], dtype=torch.int32), torch.tensor([PAGE], dtype=torch.int32)
    with pytest.raises(ValueError, match="summaries: are of pages of"):
        summarize_pages(other_summaries(keys.shape[0] - 1), keys, values, pages - 1, filled)
    with pytest.raises(ValueError, match=rf"pages: up to {keys.shape[0]}, the cache has {keys.shape[0]}"):
        summarize_pages(case.summaries, keys, values, pages, filled)
    with pytest.raises(ValueError, match="filled: from 17 to 17, pages hold 1 to 16"):
        summarize_pages(case.summaries, keys, values, pages - 1, filled + 1)
    with pytest.raises(ValueError, match="pages, filled, summaries: on meta"):
        summarize_pages(case.summaries, keys, values, pages.to("meta"), filled)


@pytest.mark.skipif(INTERPRETED, reason="what a GPU's tensors hold is looked at when asked")
def test_a_gpus_tensors_are_looked_at_when_asked() -> None:
    case = Prefill()
    batch = on(DEVICE, case.batch._replace(tables=spoilt(case.batch.tables, (0, 2), 2**20)))
    with pytest.raises(ValueError, match="batch: tables hold pages"):
        batch.check()
    decode = Decode().batch
    with pytest.raises(ValueError, match="batch: lengths from 200 to 305"):
        on(DEVICE, decode._replace(lengths=spoilt(decode.lengths, (0,), 305))).check()
