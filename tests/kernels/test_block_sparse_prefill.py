from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sparse_kernels import (
    SCORES,
    Keys,
    PagedSequence,
    PageSummaries,
    PrefillConfig,
    TileGrid,
    block_sparse_prefill_cpu,
    causal_pairs,
    dense_attention,
    select_blocks_cpu,
)
from sparse_kernels.config import RULE_NAMES, SCORE_NAMES
from sparse_kernels.cpu.block_selection import RULES
from sparse_kernels.reference.block_selection import block_energy_reference
from sparse_kernels.reference.block_sparse_prefill import block_sparse_prefill_reference
from sparse_kernels.scores import block_energy_cpu
from support.kernels.paging import PAGE, SUB, paged, queries, rms_ratio

SCALE = 8**-0.5
TILE = 32
# By softmaxes of columns: the reference defines them together.
COLUMNS = ["sampled_rows", "sub_means", "block_means", "second_order"]
# What a tile's index comes from lies at the tile or before it; lines are guessed from the last rows of a call.
TILEWISE = [name for name in SCORES if name not in ("vertical_slash", "flex")]
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 111, 200]


def config(
    threshold: float = 0.3, *, correction: bool = True, last: int = 0, score: str = "sub_means", unit: int = 1
) -> PrefillConfig:
    return PrefillConfig(
        score=score,
        threshold=threshold,
        query_tile=TILE,
        query_stride=4,
        mean_correction=correction,
        mean_blocks=unit,
        sink=16,
        window=16,
        dense_last_tiles=last,
    )


def view(sequence: PagedSequence, summaries: PageSummaries) -> Keys:
    keys = sequence.gather()[0]
    keys.flatten(1, 2)[:, sequence.length :] = 0
    return Keys(keys, summaries.sub_mean[sequence.table], summaries.sub_count[sequence.table])


def selection(q, sequence, summaries, chosen):
    grid = TileGrid.of(sequence.length - q.shape[0], q.shape[0], TILE)
    return select_blocks_cpu(grid.split(q), view(sequence, summaries), grid, sequence.length, chosen, SCALE)


@pytest.mark.parametrize("length", [1, 2, 33, 200])
@pytest.mark.parametrize("prefix", [0, 5, 32, 100])
def test_dense_attention_is_a_causal_softmax_over_all_keys(length: int, prefix: int) -> None:
    sequence, _ = paged(prefix + length)
    q = queries(length)
    keys, values = (each.flatten(1, 2)[:, : prefix + length].double() for each in sequence.gather())
    later = torch.arange(prefix + length) > torch.arange(prefix, prefix + length)[:, None]
    rows = q.double().view(length, 2, 2, 8)
    shares = (torch.einsum("thgd,hkd->hgtk", rows, keys) * SCALE).masked_fill(later, -torch.inf).softmax(-1)
    wanted = torch.einsum("hgtk,hkd->thgd", shares, values).reshape(length, 4, 8)
    out, stats = dense_attention(q, sequence, SCALE)
    assert out.shape == q.shape
    assert torch.allclose(out.double(), wanted, atol=1e-6)
    assert stats.attended == stats.causal == 4 * causal_pairs(length, prefix)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 32, 48])
@pytest.mark.parametrize("score", SCORES)
def test_threshold_zero_equals_dense(length: int, prefix: int, score: str) -> None:
    sequence, summaries = paged(prefix + length)
    q = queries(length)
    out, stats = block_sparse_prefill_cpu(q, sequence, summaries, config(0.0, score=score), SCALE)
    dense, _ = dense_attention(q, sequence, SCALE)
    assert rms_ratio(out, dense) < 1e-5
    assert stats.attended == stats.causal == 4 * causal_pairs(length, prefix)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 32, 100])
@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("score", ["sampled_rows", "sub_means"])
def test_matches_the_reference(length: int, prefix: int, correction: bool, score: str) -> None:
    sequence, summaries = paged(prefix + length)
    q = queries(length)
    chosen = config(correction=correction, score=score)
    index = selection(q, sequence, summaries, chosen)
    out, _ = block_sparse_prefill_cpu(q, sequence, summaries, chosen, SCALE, selection=index)
    wanted, _ = block_sparse_prefill_reference(q, sequence, index.kept, TILE, SCALE, mean_correction=correction)
    assert rms_ratio(out, wanted) < 1e-5


@pytest.mark.parametrize("length", [1, 33, 111, 200])
@pytest.mark.parametrize("prefix", [0, 5, 48, 100])
@pytest.mark.parametrize("unit", [2, 4])
def test_means_of_several_blocks_match_the_reference(length: int, prefix: int, unit: int) -> None:
    sequence, summaries = paged(prefix + length)
    q, chosen = queries(length), config(0.6, unit=unit)
    index = selection(q, sequence, summaries, chosen)
    out, _ = block_sparse_prefill_cpu(q, sequence, summaries, chosen, SCALE, selection=index)
    given = (q, sequence, index.kept, TILE, SCALE)
    wanted, _ = block_sparse_prefill_reference(*given, mean_correction=True, mean_blocks=unit)
    assert rms_ratio(out, wanted) < 1e-5
    if prefix + length > 200:
        single, _ = block_sparse_prefill_reference(*given, mean_correction=True)
        assert rms_ratio(out, single) > 1e-3


def test_a_reference_of_units_by_hand() -> None:
    # Six blocks, of which the tile keeps the second: units of four blocks hold three pruned ones, then no whole unit.
    sequence, _ = paged(4 * TILE)
    kept = torch.zeros(2, 4, 8, dtype=torch.bool)
    kept[:, 3, 1] = True
    q = torch.zeros(4 * TILE, 4, 8)
    _, lse = block_sparse_prefill_reference(q, sequence, kept, TILE, SCALE, mean_correction=True, mean_blocks=4)
    assert torch.allclose(lse[3 * TILE].exp(), torch.tensor(3.0 * PAGE + PAGE + 1, dtype=torch.float64))


def test_bfloat16_stays_within_its_tolerance() -> None:
    sequence, summaries = paged(333, dim=64, dtype=torch.bfloat16)
    q = queries(333, dim=64, dtype=torch.bfloat16)
    chosen = config()
    index = selection(q, sequence, summaries, chosen)
    out, _ = block_sparse_prefill_cpu(q, sequence, summaries, chosen, 64**-0.5, selection=index)
    wanted, _ = block_sparse_prefill_reference(q, sequence, index.kept, TILE, 64**-0.5, mean_correction=True)
    assert out.dtype == torch.bfloat16
    assert rms_ratio(out, wanted) < 0.005


def test_counts_what_the_index_says() -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    chosen = config(0.6)
    index = selection(q, sequence, summaries, chosen)
    _, stats = block_sparse_prefill_cpu(q, sequence, summaries, chosen, SCALE, selection=index)
    pairs = 0
    for row in range(200):
        tile = row // TILE
        kept = int(index.kept[:, tile, : tile * TILE // PAGE].sum())
        pairs += 2 * (kept * PAGE + 2 * (row % TILE + 1))
    assert stats.attended == pairs < stats.causal
    assert 0.0 < stats.coverage < 1.0


@pytest.mark.parametrize("score", ["sampled_rows", "sub_means", "block_means"])
def test_zero_queries_keep_every_block_of_equal_mass(score: str) -> None:
    sequence, summaries = paged(160)
    index = selection(torch.zeros(160, 4, 8), sequence, summaries, config(0.9, score=score))
    for tile in range(5):
        assert index.kept[:, tile, : tile * TILE // PAGE].all()


@pytest.mark.parametrize("score", TILEWISE)
def test_future_keys_change_nothing_before_their_tile(score: str) -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    before, _ = block_sparse_prefill_cpu(q, sequence, summaries, config(score=score), SCALE)
    page = int(sequence.table[160 // PAGE])
    sequence.keys[page] += 7.0
    sequence.values[page] -= 3.0
    summaries.update(sequence.keys, sequence.values, torch.tensor([page]), torch.tensor([PAGE]))
    after, _ = block_sparse_prefill_cpu(q, sequence, summaries, config(score=score), SCALE)
    assert torch.equal(before[:160], after[:160])
    assert not torch.equal(before[160:], after[160:])


@pytest.mark.parametrize("cut", [32, 64, 96, 160])
@pytest.mark.parametrize("score", TILEWISE)
@pytest.mark.parametrize("rule", [None, ("top_k", 0.3)])
def test_chunked_equals_unchunked(cut: int, score: str, rule: tuple[str, float] | None) -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    chosen = config(last=1, score=score)
    if rule is not None:
        chosen = replace(chosen, rule=rule[0], threshold=rule[1])
    whole, whole_stats = block_sparse_prefill_cpu(q, sequence, summaries, chosen, SCALE)
    # The first chunk sees what was written by then; its summaries are those of whole pages all the same.
    first = sequence._replace(table=sequence.table[: -(-cut // PAGE)], length=cut)
    head, head_stats = block_sparse_prefill_cpu(q[:cut], first, summaries, chosen, SCALE, total=200)
    tail, tail_stats = block_sparse_prefill_cpu(q[cut:], sequence, summaries, chosen, SCALE, total=200)
    assert rms_ratio(torch.cat([head, tail]), whole) < 1e-5
    assert head_stats.attended + tail_stats.attended == whole_stats.attended


def test_dense_last_tiles_only_at_the_end_of_the_prompt() -> None:
    sequence, summaries = paged(192)
    q = queries(192)
    grid = TileGrid.of(0, 192, TILE)
    at = view(sequence, summaries)
    chosen = config(1.0, last=2)
    end = select_blocks_cpu(grid.split(q), at, grid, 192, chosen, SCALE).kept
    middle = select_blocks_cpu(grid.split(q), at, grid, 1000, chosen, SCALE).kept
    assert end[:, 4, :8].all()
    assert end[:, 5, :10].all()
    assert not middle[:, 4, :8].all()


@pytest.mark.parametrize("score", COLUMNS)
@pytest.mark.parametrize("peak", [1.0, 4.0])
@pytest.mark.parametrize(("length", "stride"), [(64, 1), (200, 8), (161, 16), (170, 5)])
def test_energy_matches_the_reference(score: str, peak: float, length: int, stride: int) -> None:
    sequence, summaries = paged(length)
    q = queries(length)
    grid, at = TileGrid.of(0, length, TILE), view(sequence, summaries)
    chosen = replace(config(score=score), query_stride=stride, peak=peak)
    found = block_energy_cpu(grid.split(q), at, grid, chosen, SCALE)
    wanted = block_energy_reference(q, at.keys.flatten(1, 2)[:, :length], PAGE, SUB, chosen, SCALE)
    for one, other in zip(found, wanted, strict=True):
        # Rows of the first tile that see no whole column say nothing; its own blocks, always attended, stand for them.
        torch.testing.assert_close(one[:, 1:].double(), other[:, 1:], atol=1e-5, rtol=1e-4)


def test_every_row_scored_exactly_is_the_softmax_mass() -> None:
    sequence, summaries = paged(128)
    q = queries(128)
    grid, at = TileGrid.of(0, 128, TILE), view(sequence, summaries)
    chosen = replace(config(score="sampled_rows"), query_stride=1, sink=0)
    found = block_energy_cpu(grid.split(q), at, grid, chosen, SCALE)
    scores = torch.einsum("thd,hkd->htk", q * SCALE, at.keys.flatten(1, 2).repeat_interleave(2, 0))
    mass = scores.masked_fill(torch.ones(128, 128).triu(1).bool(), float("-inf")).softmax(-1)
    wanted = mass.view(2, 2, 4, TILE, 8, PAGE).mean((1, 3)).sum(-1)
    torch.testing.assert_close(found.mass, wanted)
    torch.testing.assert_close(found.need, wanted)


def test_a_block_that_one_row_looks_up_is_needed_more_than_its_mean_share_says() -> None:
    sequence, summaries = paged(128)
    q = torch.zeros(128, 4, 8)
    grid, at = TileGrid.of(0, 128, TILE), view(sequence, summaries)
    # All rows attend everything alike, but for one of the last tile, which looks for a key of block 3.
    q[100] = 30.0 * sequence.gather()[0].flatten(1, 2)[:, 3 * PAGE].repeat_interleave(2, 0)
    needs = [
        block_energy_cpu(
            grid.split(q), at, grid, replace(config(score="sampled_rows"), query_stride=1, peak=peak), SCALE
        ).need[:, 3, 3]
        for peak in (1.0, 8.0)
    ]
    assert (needs[1] > 2 * needs[0]).all()


@pytest.mark.parametrize("score", COLUMNS)
def test_top_p_keeps_the_share_asked_for_and_no_more(score: str) -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    grid, at = TileGrid.of(0, 200, TILE), view(sequence, summaries)
    chosen = replace(config(0.6, score=score), rule="top_p", sink=0, window=0)
    kept = select_blocks_cpu(grid.split(q), at, grid, 200, chosen, SCALE).kept
    need = block_energy_cpu(grid.split(q), at, grid, chosen, SCALE).need
    for tile in range(1, grid.tiles):
        own = need[:, tile, tile * TILE // PAGE :].sum(-1)
        held = own + (need[:, tile] * kept[:, tile]).sum(-1)
        assert (held >= 0.6 - 1e-5).all()
        least = need[:, tile].masked_fill(~kept[:, tile], 9.0).amin(-1)
        assert ((held - least < 0.6) | (kept[:, tile].sum(-1) == 0)).all()


def test_scores_and_rules_have_their_names() -> None:
    assert tuple(SCORES) == SCORE_NAMES
    assert tuple(RULES) == RULE_NAMES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score", "best"),
        ("threshold", 1.5),
        ("query_tile", 0),
        ("query_stride", 99),
        ("sink", -1),
        ("window", -1),
        ("sparse_from", -1),
    ],
)
def test_bad_config_names_the_argument(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PrefillConfig(**{"query_tile": TILE, field: value})  # type: ignore[arg-type]


def test_bad_shapes_name_the_argument() -> None:
    sequence, summaries = paged(40)
    with pytest.raises(ValueError, match="q: 41 rows"):
        block_sparse_prefill_cpu(queries(41), sequence, summaries, config(), SCALE)
    with pytest.raises(ValueError, match="3 query heads"):
        block_sparse_prefill_cpu(queries(4, heads=3), sequence, summaries, config(), SCALE)
    with pytest.raises(ValueError, match="query_tile"):
        block_sparse_prefill_cpu(queries(4), sequence, summaries, PrefillConfig(query_tile=24), SCALE)
