"""Selection in one pass against the CPU's, sequence by sequence: index, coverage, corrections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from sparse_kernels import PageSummaries, PrefillConfig
from sparse_kernels.cpu.block_selection import top_k, top_p
from sparse_kernels.gpu.block_selection import BatchSelection, select_blocks, tile_shape
from sparse_kernels.gpu.selection.plan import SelectionPlan, Workspace
from sparse_kernels.gpu.selection.rules import ranked
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.mean_correction import Corrections
from support.kernels.devices import DEVICE, INTERPRETED, launch
from support.kernels.paging import PAGE
from support.kernels.selecting import DIM, SCALE
from support.kernels.selecting import SelectionCase as Case

CONFIG = PrefillConfig(
    score="sub_means", rule="top_p", threshold=0.7, query_tile=32, query_stride=8, peak=8.0, sink=16, window=16,
    dense_last_tiles=0,
)  # fmt: skip
RULES = [("top_p", 0.8), ("max_threshold", 0.1), ("top_k", 0.3)]
RAGGED = [(0, 63), (64, 1), (40, 129), (300, 65), (0, 1), (128, 128)]
# On a GPU float32 takes two passes; the digits of halves are lost in the inputs, too.
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16


def selected(case: Case, config: PrefillConfig, **given: Any) -> BatchSelection:
    return launch(
        select_blocks, case.q, case.batch, case.summaries, config, SCALE, **{"totals": case.totals, **given}
    )  # fmt: skip


def same(case: Case, found: BatchSelection, config: PrefillConfig, apart: float = 0.0) -> None:
    """Index and coverage are the CPU's; of the blocks before tiles so many may differ where digits are lost."""
    apart = max(apart, 0.0 if INTERPRETED else 0.02)
    for number, sequence in enumerate(case.sequences):
        wanted, blocks = case.one(number, config), -(-sequence.length // PAGE)
        kept = case.of(number, found.kept)
        assert not kept[..., blocks:].any()
        differ = (kept[..., :blocks] != wanted.kept).float().mean()
        assert differ <= apart, (number, float(differ))
        assert torch.allclose(case.of(number, found.coverage), wanted.coverage, atol=1e-5 if apart == 0 else 3e-2)


@pytest.mark.parametrize("peak", [1.0, 2.0, 3.0, 8.0])
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_selects_what_each_sequence_does_alone(rule: tuple[str, float], peak: float) -> None:
    case, config = Case(RAGGED, DTYPE), replace(CONFIG, rule=rule[0], threshold=rule[1], peak=peak)
    found = selected(case, config)
    assert 0 < found.kept.float().mean() < 0.5
    same(case, found, config)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 1000, 3000])
def test_lengths(length: int) -> None:
    case = Case([(0, length)], DTYPE, 2, 1)
    same(case, selected(case, CONFIG), CONFIG)


def test_more_blocks_than_the_smallest_kernel_holds() -> None:
    case = Case([(9500, 100), (300, 20)], DTYPE, 2, 1)
    for rule, threshold in RULES:
        config = replace(CONFIG, rule=rule, threshold=threshold)
        found = selected(case, config)
        assert found.blocks == 600
        same(case, found, config)


@pytest.mark.parametrize(("heads", "kv_heads", "stride"), [(2, 2, 16), (3, 1, 5), (7, 1, 1), (8, 2, 8), (16, 1, 4)])
def test_groups_and_sampled_rows(heads: int, kv_heads: int, stride: int) -> None:
    case, config = Case([(48, 30), (0, 111)], DTYPE, heads, kv_heads), replace(CONFIG, query_stride=stride)
    same(case, selected(case, config), config)


@pytest.mark.parametrize("subs", [2, 8])
def test_other_numbers_of_sub_pages(subs: int) -> None:
    case = Case([(48, 30), (0, 200)], DTYPE, 3, 1)
    case.summaries = PageSummaries(case.batch.keys.shape[0], PAGE, 1, DIM, PAGE // subs, dtype=DTYPE)
    for sequence in case.sequences:
        case.summaries.refresh(sequence)
    same(case, selected(case, CONFIG), CONFIG)


@pytest.mark.parametrize(("sink", "window", "dense_last"), [(0, 0, 0), (100, 64, 2), (400, 16, 1), (16, 1000, 0)])
def test_what_is_always_kept(sink: int, window: int, dense_last: int) -> None:
    case = Case([(0, 600), (77, 60)], DTYPE, 2, 1)
    for rule, threshold in RULES:
        config = replace(
            CONFIG, sink=sink, window=window, dense_last_tiles=dense_last, rule=rule, threshold=threshold
        )  # fmt: skip
        same(case, selected(case, config), config)


def test_thresholds_by_head_and_a_prompt_that_goes_on() -> None:
    case, config = Case([(0, 300), (32, 268)], DTYPE), replace(CONFIG, head_thresholds=(0.0, 0.9), dense_last_tiles=1)
    totals = torch.tensor([900, 300])
    found = selected(case, config, totals=totals)
    for number, total in enumerate(totals.tolist()):
        wanted = case.one(number, config, total).kept
        assert (case.of(number, found.kept) != wanted).float().mean() <= (0.0 if INTERPRETED else 0.02)
    assert [bool(case.of(number, found.kept)[0, -1, :18].all()) for number in (0, 1)] == [False, True]


def test_a_threshold_of_one_keeps_everything() -> None:
    case, config = Case([(0, 300)], DTYPE), replace(CONFIG, threshold=1.0, peak=1.0)
    before = torch.arange(19) < case.batch.before[:, None]
    assert torch.equal(selected(case, config).kept, before.expand(2, -1, -1))


@pytest.mark.parametrize("rule", RULES)
def test_half_precision(rule: tuple[str, float], dtype: torch.dtype) -> None:
    case, config = Case(RAGGED, dtype), replace(CONFIG, rule=rule[0], threshold=rule[1])
    same(case, selected(case, config), config, 0.0 if dtype == torch.float32 else 0.02)


def test_rows_that_attend_one_block_still_rank_the_others() -> None:
    # Shares of 1e-12 and less; float16 by itself ends at 6e-8.
    case, config = Case([(0, 400)], DTYPE, spread=40.0), replace(CONFIG, rule="top_k", threshold=0.4, peak=1.0)
    found = selected(case, config)
    least = [selected(case, replace(config, rule="top_p", threshold=1 - 1e-6)).index.counts]
    assert (found.index.counts[:, -1] == 1 + 1 + 10).all()
    assert (least[0][:, -1] < found.index.counts[:, -1]).any()
    same(case, found, config)


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_corrections_are_those_of_what_is_kept(unit: int) -> None:
    case, config = Case([(0, 63), (40, 260), (300, 65)], DTYPE, 2, 1), replace(CONFIG, mean_blocks=unit)
    found = selected(case, config)
    assert found.corrections is not None
    means, value_means, offsets, weights, _ = found.corrections
    wanted = Corrections.of(found.kept, case.batch, case.summaries, unit, DTYPE)
    assert means.isfinite().all()
    assert value_means.isfinite().all()
    assert torch.allclose(weights.float(), wanted.weights.float()[..., : weights.shape[-1]], atol=4e-3)
    assert weights.isfinite().any()
    for number, sequence in enumerate(case.sequences):
        whole = sequence.length // (PAGE * unit)
        for mine, other in ((means, wanted.means), (value_means, wanted.value_means)):
            rows = slice(int(wanted.offsets[number]), int(wanted.offsets[number]) + whole)
            at = int(offsets[number])
            assert torch.allclose(mine[at : at + whole], other[rows], atol=1e-6 if INTERPRETED else 1e-2)


def test_without_correction_there_are_none() -> None:
    case = Case([(0, 200)], DTYPE)
    assert selected(case, replace(CONFIG, mean_correction=False)).corrections is None


def test_dense_sequences_keep_everything_and_change_nobody_else() -> None:
    case = Case([(0, 160), (0, 100)], DTYPE)
    plain, mixed = selected(case, CONFIG), selected(case, CONFIG, dense=torch.tensor([False, True]))
    assert torch.equal(case.of(0, mixed.kept), case.of(0, plain.kept))
    before = torch.arange(plain.kept.shape[2]) < case.batch.before[:, None]
    assert torch.equal(case.of(1, mixed.kept), case.of(1, before.expand(2, -1, -1)))
    assert torch.equal(case.of(1, mixed.coverage), torch.ones(2, 4))


@pytest.mark.parametrize("rule", RULES)
def test_scratch_that_others_left_changes_nothing(rule: tuple[str, float]) -> None:
    case, config = Case([(0, 300), (64, 100)], DTYPE), replace(CONFIG, rule=rule[0], threshold=rule[1])

    def each(
        q: torch.Tensor, batch: PagedBatch, summaries: PageSummaries, totals: torch.Tensor
    ) -> list[BatchSelection]:
        shared, wide = Workspace(DEVICE, 1 if INTERPRETED else 2), Workspace(DEVICE, 1000)
        shape = tile_shape(config, 3, DIM, PAGE, summaries.sub_page, q.dtype, q.device)
        assert shape is not None
        plan = SelectionPlan.read(batch, shape)
        found = [
            select_blocks(q, batch, summaries, config, SCALE, totals=totals, plan=plan, workspace=workspace)
            for workspace in (shared, shared, wide)
        ]
        # A GPU has more programs than this batch has items.
        assert shared.nbytes < wide.nbytes or not INTERPRETED
        return found

    found = launch(each, case.q, case.batch, case.summaries, case.totals)
    for other in found[1:]:
        assert torch.equal(other.kept, found[0].kept)
        assert torch.equal(other.coverage, found[0].coverage)
    same(case, found[0], config)


@triton.jit
def rank(need, free, kept, threshold, blocks, WIDTH: tl.constexpr, TOP_P: tl.constexpr, TOGETHER: tl.constexpr):
    o_w = tl.arange(0, WIDTH)
    m_sure, m_level, left = ranked(tl.load(need + o_w), tl.load(free + o_w) != 0, threshold, blocks, TOP_P, TOGETHER)
    m_level = m_level & (tl.cumsum(m_level.to(tl.int32), 0) <= left)
    tl.store(kept + o_w, (m_sure | m_level).to(tl.int8))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_rules_are_those_of_sorting(threshold: float, ties: bool, together: bool) -> None:
    generator = torch.Generator().manual_seed(int(100 * threshold))
    need = torch.rand(64, generator=generator).pow(4)
    need = (need * 8).ceil() if ties else need
    need[::7] = 0
    need /= need.sum()
    given = torch.rand(64, generator=generator) < 0.2
    for by_sum, rule in ((True, top_p), (False, top_k)):
        wanted = rule(need[None, None], given[None], torch.tensor([[[threshold]]]), torch.tensor(64))[0, 0] & ~given

        def run(need: torch.Tensor, free: torch.Tensor, by_sum: bool = by_sum) -> torch.Tensor:
            kept = torch.zeros(64, dtype=torch.int8, device=need.device)
            rank[(1,)](need, free, kept, threshold, 64, WIDTH=64, TOP_P=by_sum, TOGETHER=together)
            return kept

        found = launch(run, need, (~given).to(torch.int8)).bool()
        if ties and by_sum:
            # Equal numbers add up to a target by rounding; one more or less is as good.
            assert abs(int(found.sum()) - int(wanted.sum())) <= 1
            assert need[found].sum() >= need[wanted].sum() - need.max()
        else:
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": None, "totals": torch.tensor([1, 2, 3])}, "totals, dense: must be one of each of the 1 sequences"),
        ({"dense": torch.tensor([True, False])}, "totals, dense: must be"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        selected(Case([(0, 64)], DTYPE), CONFIG, **change)


def test_a_plan_of_another_batch_is_refused() -> None:
    case = Case([(0, 200)], DTYPE)
    shape = tile_shape(CONFIG, 3, DIM, PAGE, 4, DTYPE, torch.device(DEVICE))
    assert shape is not None
    with pytest.raises(ValueError, match="plan: is of 2 tiles"):
        selected(case, CONFIG, plan=SelectionPlan.of([64], [64], 2, shape, DEVICE))
    with pytest.raises(ValueError, match="scale: must be more than 0"):
        select_blocks(case.q, case.batch, case.summaries, CONFIG, 0.0, totals=case.totals)
