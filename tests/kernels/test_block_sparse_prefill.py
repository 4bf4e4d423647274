from __future__ import annotations

import pytest
import torch
from sparse_kernels import PrefillConfig, TileGrid, block_sparse_prefill, causal_pairs, dense_attention, select_blocks
from sparse_kernels.reference import block_sparse_prefill_reference
from support.paging import PAGE, paged, queries, rms_ratio

SCALE = 8**-0.5
TILE = 32
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 111, 200]


def config(threshold: float = 0.3, *, correction: bool = True, last: int = 0) -> PrefillConfig:
    return PrefillConfig(
        threshold=threshold,
        query_tile=TILE,
        query_stride=4,
        mean_correction=correction,
        sink=16,
        window=16,
        dense_last_tiles=last,
    )


def selection(q, sequence, summaries, chosen):
    grid = TileGrid.of(sequence.length - q.shape[0], q.shape[0], TILE)
    sub = summaries.sub_mean[sequence.table], summaries.sub_count[sequence.table]
    return select_blocks(grid.split(q), *sub, grid, sequence.length, PAGE, chosen, SCALE)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 32, 48])
def test_threshold_zero_equals_dense(length: int, prefix: int) -> None:
    sequence, summaries = paged(prefix + length)
    q = queries(length)
    out, stats = block_sparse_prefill(q, sequence, summaries, config(0.0), SCALE)
    dense, _ = dense_attention(q, sequence, SCALE)
    assert rms_ratio(out, dense) < 1e-5
    assert stats.attended == stats.causal == 4 * causal_pairs(length, prefix)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 5, 32, 100])
@pytest.mark.parametrize("correction", [True, False])
def test_matches_the_reference(length: int, prefix: int, correction: bool) -> None:
    sequence, summaries = paged(prefix + length)
    q = queries(length)
    chosen = config(correction=correction)
    index = selection(q, sequence, summaries, chosen)
    out, _ = block_sparse_prefill(q, sequence, summaries, chosen, SCALE, selection=index)
    wanted = block_sparse_prefill_reference(q, sequence, index.kept, TILE, SCALE, mean_correction=correction)
    assert rms_ratio(out, wanted) < 1e-5


def test_bfloat16_stays_within_its_tolerance() -> None:
    sequence, summaries = paged(333, dim=64, dtype=torch.bfloat16)
    q = queries(333, dim=64, dtype=torch.bfloat16)
    chosen = config()
    index = selection(q, sequence, summaries, chosen)
    out, _ = block_sparse_prefill(q, sequence, summaries, chosen, 64**-0.5, selection=index)
    wanted = block_sparse_prefill_reference(q, sequence, index.kept, TILE, 64**-0.5, mean_correction=True)
    assert out.dtype == torch.bfloat16
    assert rms_ratio(out, wanted) < 0.005


def test_counts_what_the_index_says() -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    chosen = config(0.6)
    index = selection(q, sequence, summaries, chosen)
    _, stats = block_sparse_prefill(q, sequence, summaries, chosen, SCALE, selection=index)
    pairs = 0
    for row in range(200):
        tile = row // TILE
        kept = int(index.kept[:, tile, : tile * TILE // PAGE].sum())
        pairs += 2 * (kept * PAGE + 2 * (row % TILE + 1))
    assert stats.attended == pairs < stats.causal
    assert 0.0 < stats.coverage < 1.0


def test_zero_queries_keep_every_block_of_equal_mass() -> None:
    sequence, summaries = paged(160)
    index = selection(torch.zeros(160, 4, 8), sequence, summaries, config(0.9))
    for tile in range(5):
        assert index.kept[:, tile, : tile * TILE // PAGE].all()


def test_future_keys_change_nothing_before_their_tile() -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    before, _ = block_sparse_prefill(q, sequence, summaries, config(), SCALE)
    page = int(sequence.table[160 // PAGE])
    sequence.keys[page] += 7.0
    sequence.values[page] -= 3.0
    summaries.update(sequence.keys, sequence.values, torch.tensor([page]), torch.tensor([PAGE]))
    after, _ = block_sparse_prefill(q, sequence, summaries, config(), SCALE)
    assert torch.equal(before[:160], after[:160])
    assert not torch.equal(before[160:], after[160:])


@pytest.mark.parametrize("cut", [32, 64, 96, 160])
def test_chunked_equals_unchunked(cut: int) -> None:
    sequence, summaries = paged(200)
    q = queries(200)
    whole, whole_stats = block_sparse_prefill(q, sequence, summaries, config(last=1), SCALE)
    # The first chunk sees what was written by then; its summaries are those of whole pages all the same.
    first = sequence._replace(table=sequence.table[: -(-cut // PAGE)], length=cut)
    head, head_stats = block_sparse_prefill(q[:cut], first, summaries, config(last=1), SCALE, total=200)
    tail, tail_stats = block_sparse_prefill(q[cut:], sequence, summaries, config(last=1), SCALE, total=200)
    assert rms_ratio(torch.cat([head, tail]), whole) < 1e-5
    assert head_stats.attended + tail_stats.attended == whole_stats.attended


def test_dense_last_tiles_only_at_the_end_of_the_prompt() -> None:
    sequence, summaries = paged(192)
    q = queries(192)
    grid = TileGrid.of(0, 192, TILE)
    sub = summaries.sub_mean[sequence.table], summaries.sub_count[sequence.table]
    chosen = config(1.0, last=2)
    end = select_blocks(grid.split(q), *sub, grid, 192, PAGE, chosen, SCALE).kept
    middle = select_blocks(grid.split(q), *sub, grid, 1000, PAGE, chosen, SCALE).kept
    assert end[:, 4, :8].all()
    assert end[:, 5, :10].all()
    assert not middle[:, 4, :8].all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("threshold", 1.5), ("query_tile", 0), ("query_stride", 99), ("sink", -1), ("window", -1), ("sparse_from", -1)],
)
def test_bad_config_names_the_argument(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PrefillConfig(**{"query_tile": TILE, field: value})  # type: ignore[arg-type]


def test_bad_shapes_name_the_argument() -> None:
    sequence, summaries = paged(40)
    with pytest.raises(ValueError, match="q: 41 rows"):
        block_sparse_prefill(queries(41), sequence, summaries, config(), SCALE)
    with pytest.raises(ValueError, match="3 query heads"):
        block_sparse_prefill(queries(4, heads=3), sequence, summaries, config(), SCALE)
    with pytest.raises(ValueError, match="query_tile"):
        block_sparse_prefill(queries(4), sequence, summaries, PrefillConfig(query_tile=24), SCALE)
