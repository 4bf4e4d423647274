from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sparse_kernels import PagedSequence, PageSummaries, dense_attention
from sparse_kernels.gpu.block_sparse_prefill import PrefillOutput, block_sparse_prefill, implementation
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.layout.block_index import BlockIndex
from sparse_kernels.mean_correction import Corrections
from sparse_kernels.reference.block_sparse_prefill import block_sparse_prefill_reference
from support.kernels.devices import DEVICE, EXACT, launch, on
from support.kernels.exact_prefill import exact_prefill
from support.kernels.paging import PAGE, joined, queries, rms_ratio

TILE, HEADS, DIM = 32, 4, 16
SCALE = DIM**-0.5
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 111]


def kept_at_random(batch: PagedBatch, share: float = 0.4, seed: int = 2) -> torch.Tensor:
    """bool ``[Hkv, tiles, blocks]``, of the blocks before each tile."""
    blocks = batch.tables.shape[1]
    shape = (batch.keys.shape[2], batch.tiles.number.numel(), blocks)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    return drawn & (torch.arange(blocks) < batch.before[:, None])


class Case:
    """A batch, its queries, and what is kept; ``counts`` are (prefix, queries) of each sequence."""

    def __init__(self, counts: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32, dim: int = DIM) -> None:
        self.sequences, self.summaries = joined([prefix + new for prefix, new in counts], dim=dim, dtype=dtype)
        self.new = [new for _, new in counts]
        self.q = queries(sum(self.new), HEADS, dim, dtype=dtype)
        self.batch = PagedBatch.of(self.sequences, self.new, TILE)
        self.kept = kept_at_random(self.batch)
        self.scale = dim**-0.5

    def corrections(self, unit: int = 1) -> Corrections:
        return Corrections.of(self.kept, self.batch, self.summaries, unit, self.q.dtype)

    def run(self, *, correction: bool = False, unit: int = 1, **options: Any) -> PrefillOutput:
        index = options.pop("index", None) or BlockIndex.of(self.kept)
        corrections = self.corrections(unit) if correction else None
        return launch(block_sparse_prefill, self.q, self.batch, index, self.scale, corrections=corrections, **options)

    def reference(self, *, correction: bool = False, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outs, lses = [], []
        for number, (sequence, rows) in enumerate(zip(self.sequences, self.q.split(self.new), strict=True)):
            kept = self.kept[:, self.batch.tiles.sequence == number]
            out, lse = block_sparse_prefill_reference(
                rows, sequence, kept, TILE, self.scale, mean_correction=correction, **options
            )
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses)


def full(case: Case) -> BlockIndex:
    return BlockIndex.full(case.batch.before, 2, case.batch.tables.shape[1])


def dense(sequence: PagedSequence, q: torch.Tensor) -> torch.Tensor:
    return dense_attention(q, sequence, SCALE)[0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 32, 100])
def test_a_full_index_equals_dense(length: int, prefix: int) -> None:
    case = Case([(prefix, length)])
    out, _ = case.run(index=full(case))
    assert rms_ratio(out, dense(case.sequences[0], case.q)) < EXACT


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 48, 100])
@pytest.mark.parametrize("correction", [True, False])
def test_matches_the_reference(length: int, prefix: int, correction: bool) -> None:
    case = Case([(prefix, length)])
    out, lse = case.run(correction=correction)
    wanted, wanted_lse = case.reference(correction=correction)
    assert rms_ratio(out, wanted) < EXACT
    assert rms_ratio(lse, wanted_lse) < EXACT


@pytest.mark.parametrize("options", [{}, {"window": 40}, {"softcap": 3.0}, {"window": 17, "softcap": 5.0}])
@pytest.mark.parametrize("correction", [True, False])
def test_ragged_batches_match_the_reference(options: dict[str, Any], correction: bool) -> None:
    case = Case([(0, 70), (33, 1), (64, 33), (100, 0), (7, 40)])
    out, lse = case.run(correction=correction, **options)
    wanted, wanted_lse = case.reference(correction=correction, **options)
    assert rms_ratio(out, wanted) < EXACT
    assert rms_ratio(lse, wanted_lse) < EXACT


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_means_of_several_blocks_correct(unit: int) -> None:
    case = Case([(0, 200), (33, 1), (64, 133), (7, 40)])
    out, lse = case.run(correction=True, unit=unit)
    wanted, wanted_lse = exact_prefill(case.q, case.batch, case.kept, SCALE, unit)
    # The logarithm of three pruned blocks, in half precision, is off by a 1,500th.
    assert rms_ratio(out, wanted) < max(EXACT, 2e-4)
    assert rms_ratio(lse, wanted_lse) < max(EXACT, 2e-4)


@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_dtypes_are_near_the_definition(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    case = Case([(40, 70)], dtype, dim)
    out, _ = case.run(correction=True)
    assert out.dtype == dtype
    assert rms_ratio(out, case.reference(correction=True)[0]) < tolerance


def test_chunks_give_what_the_whole_gives() -> None:
    whole = Case([(0, 128)])
    out, _ = whole.run(correction=True)
    (sequence,) = whole.sequences
    cut = sequence._replace(length=64, table=sequence.table[:4])
    parts = []
    for part, rows, kept in ((cut, whole.q[:64], whole.kept[:, :2, :4]), (sequence, whole.q[64:], whole.kept[:, 2:])):
        batch = PagedBatch.of([part], [64], TILE)
        corrections = Corrections.of(kept, batch, whole.summaries, 1, rows.dtype)
        parts.append(launch(block_sparse_prefill, rows, batch, BlockIndex.of(kept), SCALE, corrections=corrections).out)
    assert torch.equal(torch.cat(parts), out)


def test_future_keys_change_nothing() -> None:
    case = Case([(0, 90)])
    out, _ = case.run(correction=True)
    (sequence,) = case.sequences
    later = sequence.keys.clone()
    later[sequence.table[4:]] += 1.0
    case.batch = case.batch._replace(keys=later)
    again, _ = case.run(correction=True)
    assert torch.equal(again[:64], out[:64])
    assert not torch.equal(again[64:], out[64:])


def test_zero_queries_weigh_all_they_see_alike() -> None:
    case = Case([(0, 96)])
    case.q = torch.zeros_like(case.q)
    _, lse = case.run()
    for row in range(96):
        tile = row // TILE
        seen = case.kept[:, tile].sum(-1) * PAGE + row % TILE + 1
        assert torch.allclose(lse[row].view(2, 2), seen.float().log()[:, None].expand(2, 2), atol=1e-5)


def test_weak_blocks_are_skipped_within_the_bound() -> None:
    case = Case([(0, 320)])
    case.q = 4 * case.q
    every, cut = case.run(index=full(case)), case.run(index=full(case), skip_below=0.01)
    assert not torch.equal(every.out, cut.out)
    # Each skipped key weighs less than the threshold against the strongest.
    lost = every.lse - cut.lse
    assert (lost > -1e-5).all()
    assert (lost < math.log1p(320 * 0.01)).all()
    assert rms_ratio(cut.out, every.out) < 0.05


def test_what_is_given_is_written_to() -> None:
    case = Case([(0, 70)])
    out, lse = case.run()
    into = on(DEVICE, PrefillOutput(torch.full_like(out, math.nan), torch.full_like(lse, math.nan)))
    given = on(DEVICE, (case.q, case.batch, BlockIndex.of(case.kept)))
    assert block_sparse_prefill(*given, case.scale, into=into) is into
    written = on("cpu", into)
    assert torch.equal(written.out, out)
    assert torch.equal(written.lse, lse)
    with pytest.raises(ValueError, match="into: out is"):
        case.run(into=PrefillOutput(out.half(), lse))
    with pytest.raises(ValueError, match="into: lse is"):
        case.run(into=PrefillOutput(out, lse[:1]))


def test_the_portable_kernel_runs_where_there_is_no_hopper() -> None:
    for device, dtype, dim, page, tile in (
        ("cpu", torch.bfloat16, 128, 64, 128),
        ("cuda", torch.float32, 128, 64, 128),
        ("cuda", torch.bfloat16, 256, 64, 128),
        ("cuda", torch.bfloat16, 128, 16, 128),
        ("cuda", torch.bfloat16, 128, 64, 64),
    ):
        assert implementation(torch.device(device), dtype, dim, page, tile) == "triton"


def test_a_batch_without_queries_is_empty() -> None:
    case = Case([(10, 0)])
    out, lse = case.run()
    assert out.shape == (0, HEADS, DIM)
    assert lse.shape == (0, HEADS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"window": -1}, "window and softcap"),
        ({"skip_below": 1.0}, r"skip_below: must lie in \[0, 1\)"),
    ],
)
def test_bad_options_are_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Case([(0, 40)]).run(**change)


def test_what_does_not_fit_is_named() -> None:
    case = Case([(0, 70)])
    index = BlockIndex.of(case.kept)
    with pytest.raises(ValueError, match="q: 3 query heads are not a multiple of 2"):
        block_sparse_prefill(case.q[:, :3], case.batch, index, SCALE)
    with pytest.raises(ValueError, match="q: head dimension 8 must be that of the keys, 16"):
        block_sparse_prefill(case.q[..., :8], case.batch, index, SCALE)
    with pytest.raises(ValueError, match="index: starts and counts are"):
        block_sparse_prefill(case.q, case.batch, BlockIndex.of(case.kept[:, :1]), SCALE)
    good = case.corrections()
    for change, problem in (
        (
            {"weights": good.weights[:, :1].contiguous()},
            r"corrections: weights are .*, not \(2, 3\) and 4 or",
        ),
        ({"weights": good.weights[..., :64].contiguous()}, "corrections: weights are .*, not .* in steps of 128"),
        ({"means": good.means.half()}, r"corrections: means are \(128, 2, 16\) torch.float16"),
        ({"means": good.means.transpose(0, 1).contiguous().transpose(0, 1)}, "must be contiguous"),
        ({"unit": 3}, "corrections: 1 offsets and units of 3 blocks do not fit"),
    ):
        with pytest.raises(ValueError, match=problem):
            block_sparse_prefill(case.q, case.batch, index, SCALE, corrections=good._replace(**change))
    with pytest.raises(ValueError, match="q, keys, values: the head dimension must be contiguous"):
        block_sparse_prefill(case.q.transpose(1, 2).contiguous().transpose(1, 2), case.batch, index, SCALE)
    odd = PagedBatch.of(case.sequences, [70], 24)
    with pytest.raises(ValueError, match="batch: pages of 16 and tiles of 24 rows"):
        block_sparse_prefill(case.q, odd, BlockIndex.of(kept_at_random(odd)), SCALE)
    with pytest.raises(ValueError, match="queries: 71 of number 0, which has 70 tokens"):
        PagedBatch.of(case.sequences, [71], TILE)
    with pytest.raises(ValueError, match="queries: 2 counts for 1 sequences"):
        PagedBatch.of(case.sequences, [1, 1], TILE)


def test_summaries_of_the_batch_are_those_of_its_pages() -> None:
    # The means that correct are those that the pool keeps, by physical page.
    case = Case([(0, 48), (16, 20)])
    assert isinstance(case.summaries, PageSummaries)
    (first, second) = case.sequences
    page = int(second.table[1])
    assert torch.allclose(case.summaries.mean[page], second.keys[page].float().mean(0), atol=1e-5)
    assert not set(first.table.tolist()) & set(second.table.tolist())
