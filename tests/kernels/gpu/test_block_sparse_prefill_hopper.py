"""The Gluon kernel against the definition; Gluon has no interpreter, so a Hopper GPU it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from sparse_kernels import PagedSequence, PageSummaries
from sparse_kernels.gpu.block_sparse_prefill import PrefillOutput, block_sparse_prefill, implementation
from sparse_kernels.gpu.hopper import block_sparse_prefill as kernels
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import Corrections
from support.kernels.exact_prefill import exact_prefill
from support.kernels.paging import rms_ratio

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")

PAGE, TILE, AROUND = 64, 128, 96
BOUNDS = {torch.bfloat16: 0.005, torch.float16: 0.002}
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000, 4097]


class Case:
    """A batch on shuffled pages whose unwritten slots are NaN; ``counts`` are (prefix, queries) of each sequence."""

    def __init__(
        self,
        counts: Sequence[tuple[int, int]],
        heads: int = 8,
        kv_heads: int = 2,
        dim: int = 128,
        dtype: torch.dtype = torch.bfloat16,
        share: float = 0.3,
    ) -> None:
        self.generator = torch.Generator("cuda").manual_seed(len(counts) + heads)
        needed = [-(-(prefix + new) // PAGE) for prefix, new in counts]
        pages = sum(needed) + 3
        caches = torch.full((2, pages, PAGE, kv_heads, dim), torch.nan, dtype=dtype, device="cuda")
        keys, values = caches.unbind()
        tables = torch.randperm(pages, generator=self.generator, device="cuda")[: sum(needed)].split(needed)
        sequences = []
        for table, (prefix, new) in zip(tables, counts, strict=True):
            for cache, spread in ((keys, 2.0), (values, 1.0)):
                written = torch.full((table.numel() * PAGE, kv_heads, dim), torch.nan, device="cuda")
                written[: prefix + new] = spread * self.normal(prefix + new, kv_heads, dim)
                cache[table] = written.view(-1, PAGE, kv_heads, dim).to(dtype)
            sequences.append(PagedSequence(keys, values, table, prefix + new))
        self.batch = PagedBatch.of(sequences, [new for _, new in counts], TILE)
        self.summaries = PageSummaries(pages, PAGE, kv_heads, dim, 16, "cuda", dtype)
        for sequence in sequences:
            self.summaries.refresh(sequence)
        # As models project them: keys and values of a token behind its queries.
        projected = self.normal(sum(new for _, new in counts), (heads + 2 * kv_heads) * dim).to(dtype)
        self.q = projected[:, : heads * dim].view(-1, heads, dim)
        self.scale = dim**-0.5
        drawn = torch.rand(kv_heads, *self.before.shape, generator=self.generator, device="cuda") < share
        self.kept = drawn & self.before

    def normal(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self.generator, device="cuda")

    @property
    def before(self) -> torch.Tensor:
        """Blocks wholly before each tile."""
        return torch.arange(self.batch.tables.shape[1], device="cuda") < self.batch.before[:, None]

    def run(self, unit: int = 0, index: BlockIndex | None = None) -> PrefillOutput:
        """The kernel, writing amid rows that it must leave alone."""
        rows, heads, dim = self.q.shape
        assert implementation(self.q.device, self.q.dtype, dim, PAGE, TILE) == "gluon"
        outs = self.q.new_full((rows + 2 * AROUND, heads, dim), torch.nan)
        lses = torch.full((rows + 2 * AROUND, heads), torch.nan, device="cuda")
        mine = slice(AROUND, AROUND + rows)
        corrections = Corrections.of(self.kept, self.batch, self.summaries, unit, self.q.dtype) if unit else None
        found = block_sparse_prefill(
            self.q, self.batch, index or BlockIndex.of(self.kept), self.scale, corrections=corrections,
            into=PrefillOutput(outs[mine], lses[mine]),
        )  # fmt: skip
        for each in (outs, lses):
            assert each[:AROUND].isnan().all()
            assert each[AROUND + rows :].isnan().all()
        return found

    def holds(self, unit: int = 0, index: BlockIndex | None = None) -> None:
        """Asserts that the kernel gives what the definition says."""
        out, lse = self.run(unit, index)
        kept = self.before.expand_as(self.kept) if index is not None else self.kept
        wanted, wanted_lse = exact_prefill(self.q, self.batch, kept, self.scale, unit)
        # Means are rounded to the dtype of the queries.
        assert rms_ratio(out, wanted) < BOUNDS[self.q.dtype] * (2 if unit else 1)
        assert torch.allclose(lse.double(), wanted_lse, atol=0.02 if unit else 0.002, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 64, 100, 128])
def test_lengths_and_prefixes(length: int, prefix: int) -> None:
    Case([(prefix, length)]).holds()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_groups_of_ragged_batches(group: int, dim: int, dtype: torch.dtype) -> None:
    counts = [(100, 300), (0, 1), (63, 65), (1000, 0), (128, 128), (5, 700), (1, 63)]
    Case(counts, 2 * group, 2, dim, dtype).holds()


@pytest.mark.parametrize("unit", [1, 2, 4])
@pytest.mark.parametrize(
    ("group", "dim", "dtype"), [(4, 128, torch.bfloat16), (3, 64, torch.float16), (1, 128, torch.float16)]
)
def test_mean_correction(group: int, dim: int, dtype: torch.dtype, unit: int) -> None:
    Case([(0, 2000), (77, 900), (9000, 200)], 2 * group, 2, dim, dtype).holds(unit)


def strong(case: Case) -> Case:
    """The same with keys, of every 7th block, that outscore what rows see first by more than a float can tell."""
    for block in range(0, case.batch.tables.shape[1], 7):
        page = int(case.batch.tables[0, block])
        case.batch.keys[page] *= 60
    return case


@pytest.mark.parametrize("dim", [64, 128])
def test_rows_that_need_a_running_maximum_are_done_again(dim: int) -> None:
    case = strong(Case([(0, 3000)], 8, 2, dim))
    for _ in range(3):
        case.holds()
    assert all(int(count) == 0 for pair in kernels._kept.values() for count in (pair[0], pair[1][0]))


def test_rows_that_outgrow_what_they_see_first_within_a_floats_range_are_done_once() -> None:
    case = Case([(0, 3000)])
    case.q.fill_(1.0)
    page, grown = int(case.batch.tables[0, 0]), 140 / math.log2(math.e)
    case.batch.keys[page] = grown / (case.q.shape[2] * case.scale)
    index = BlockIndex.full(case.batch.before, 2, case.batch.tables.shape[1])
    case.run(index=index)
    for counts in kernels._kept.values():
        counts.redone[1:] = -1
    case.holds(index=index)
    assert all(int(counts.redone[1:].max()) == -1 for counts in kernels._kept.values())


def test_a_graph_does_rows_again() -> None:
    case = strong(Case([(0, 2000)]))
    index, wanted = BlockIndex.of(case.kept), case.run().out
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = block_sparse_prefill(case.q, case.batch, index, case.scale)
    for _ in range(3):
        found.out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(found.out, wanted)


@pytest.mark.parametrize("length", [128, 129, 4097])
@pytest.mark.parametrize("heads", [8, 6])
def test_a_full_index_is_dense(heads: int, length: int) -> None:
    case = Case([(0, length), (77, 200)], heads)
    case.holds(index=BlockIndex.full(case.batch.before, 2, case.batch.tables.shape[1]))


@pytest.mark.parametrize("unit", [0, 2])
def test_an_empty_index_leaves_a_tile_its_own(unit: int) -> None:
    Case([(0, 1000), (300, 260)], share=0.0).holds(unit)


def test_runs_repeat_bit_by_bit() -> None:
    case = Case([(0, 4097), (77, 900)], 32, 8)
    first = case.run(1)
    for _ in range(5):
        assert torch.equal(case.run(1).out, first.out)


def test_a_graph_replays_with_other_queries() -> None:
    case = Case([(0, 1000), (77, 300)])
    index = BlockIndex.of(case.kept)
    case.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Twice: the second launch needs the first one's counter back at zero, or one of its own.
        block_sparse_prefill(case.q, case.batch, index, case.scale)
        found = block_sparse_prefill(case.q, case.batch, index, case.scale)
    for _ in range(2):
        case.q.copy_(case.normal(*case.q.shape))
        found.out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(found.out, case.run().out)


def test_streams_do_not_share_a_counter() -> None:
    cases = [Case([(0, 3000 + 64 * number)], 32, 8) for number in range(2)]
    wanted = [case.run().out for case in cases]
    indices = [BlockIndex.of(case.kept) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for case, index, stream, outs in zip(cases, indices, streams, found, strict=True):
            with torch.cuda.stream(stream):
                outs.append(block_sparse_prefill(case.q, case.batch, index, case.scale).out)
    torch.cuda.synchronize()
    assert all(torch.equal(out, right) for outs, right in zip(found, wanted, strict=True) for out in outs)


@pytest.mark.parametrize("options", [{"window": 100}, {"softcap": 5.0}, {"skip_below": 1e-3}])
def test_options_take_the_portable_kernel(options: dict[str, float]) -> None:
    case = Case([(0, 300), (77, 200)])
    index = BlockIndex.of(case.kept)
    plain = block_sparse_prefill(case.q, case.batch, index, case.scale).out
    found = block_sparse_prefill(case.q, case.batch, index, case.scale, **options).out
    assert found.isfinite().all()
    assert not torch.equal(found, plain)


def test_a_cache_of_split_heads_takes_the_portable_kernel() -> None:
    case = Case([(0, 300), (77, 200)])
    plain = block_sparse_prefill(case.q, case.batch, BlockIndex.of(case.kept), case.scale).out
    split = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in case.batch[:2]]
    case.batch = case.batch._replace(keys=split[0], values=split[1])
    found = block_sparse_prefill(case.q, case.batch, BlockIndex.of(case.kept), case.scale).out
    assert rms_ratio(found, plain) < 0.005
