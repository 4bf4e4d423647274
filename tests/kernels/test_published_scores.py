"""Published selectors and fixed patterns, beside their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sparse_kernels import Keys, LayerSchedule, PrefillConfig, SparseAttention, TileGrid, block_sparse_prefill_cpu
from sparse_kernels.cpu.block_selection import select_blocks_cpu
from sparse_kernels.reference.scores import antidiagonal_reference, flex_reference, vertical_slash_reference
from sparse_kernels.scores import block_energy_cpu, lines
from support.kernels.paging import PAGE, paged, queries

SCALE = 8**-0.5
TILE = 32
BASE = PrefillConfig(query_tile=TILE, query_stride=4, sink=16, window=16, dense_last_tiles=0)
PATTERNS = ["random_blocks", "strided_blocks", "lsh_buckets"]


def energy(length: int, config: PrefillConfig, q: torch.Tensor | None = None):
    sequence, summaries = paged(length)
    q = queries(length) if q is None else q
    keys = sequence.gather()[0]
    keys.flatten(1, 2)[:, length:] = 0
    at = Keys(keys, summaries.sub_mean[sequence.table], summaries.sub_count[sequence.table])
    grid = TileGrid.of(0, length, TILE)
    return block_energy_cpu(grid.split(q), at, grid, config, SCALE), q, keys.flatten(1, 2)[:, :length], at, grid


@pytest.mark.parametrize("length", [1, 15, 64, 111, 200])
@pytest.mark.parametrize(("stride", "peak"), [(4, 1.0), (8, 4.0), (16, 1.0)])
def test_antidiagonal_matches_its_definition(length: int, stride: int, peak: float) -> None:
    config = replace(BASE, score="antidiagonal", query_stride=stride, peak=peak)
    found, q, keys, *_ = energy(length, config)
    wanted = antidiagonal_reference(q, keys, PAGE, config, SCALE)
    torch.testing.assert_close(found.need.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 200])
def test_vertical_slash_matches_its_definition(length: int) -> None:
    config = replace(BASE, score="vertical_slash")
    found, q, keys, *_ = energy(length, config)
    wanted = vertical_slash_reference(q, keys, PAGE, config, SCALE)
    torch.testing.assert_close(found.need.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trusted", [0.0, 0.1, 9.0])
@pytest.mark.parametrize("length", [15, 64, 200])
def test_flex_matches_its_definition(length: int, trusted: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_TRUSTED", trusted)
    config = replace(BASE, score="flex")
    found, q, keys, *_ = energy(length, config)
    wanted = flex_reference(q, keys, PAGE, config, SCALE, trusted)
    torch.testing.assert_close(found.need.double(), wanted, atol=1e-5, rtol=1e-4)


def test_a_vertical_line_is_found_wherever_it_stands() -> None:
    q = torch.zeros(200, 4, 8)
    _, _, keys, *_ = energy(200, BASE, q)
    q[-64:] = 40.0 * keys[:, 70].repeat_interleave(2, 0)
    found, *_ = energy(200, replace(BASE, score="vertical_slash"), q)
    assert (found.need[:, 5].argmax(-1) == 70 // PAGE).all()


@pytest.mark.parametrize("score", PATTERNS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_patterns_keep_the_share_asked_for(score: str, share: float) -> None:
    config = replace(BASE, score=score, rule="top_k", threshold=share, sink=0, window=0)
    _, q, _, at, grid = energy(256, config)
    kept = select_blocks_cpu(grid.split(q), at, grid, 256, config, SCALE).kept
    for tile in range(grid.tiles):
        there = tile * TILE // PAGE
        assert (kept[:, tile].sum(-1) == min(there, round(share * 16))).all()


def test_strided_blocks_lie_evenly() -> None:
    config = replace(BASE, score="strided_blocks", rule="top_k", threshold=0.25, sink=0, window=0)
    _, q, _, at, grid = energy(256, config)
    kept = select_blocks_cpu(grid.split(q), at, grid, 256, config, SCALE).kept
    assert kept[0, 7].nonzero().flatten().tolist() == [0, 4, 8, 12]


def test_random_blocks_differ_between_tiles_and_heads_and_never_between_runs() -> None:
    config = replace(BASE, score="random_blocks")
    first, second = (energy(256, config)[0].need for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0, 6].argsort(), first[1, 6].argsort())
    assert not torch.equal(first[0, 6, :12].argsort(), first[0, 7, :12].argsort())


def test_blocks_in_the_tiles_bucket_come_first() -> None:
    q = torch.zeros(256, 4, 8)
    _, _, _, at, _ = energy(256, BASE, q)
    # Both KV heads' queries look like the mean of block 5.
    mean, _ = at.means()
    q[224:] = mean[5].repeat_interleave(2, 0)
    found, *_ = energy(256, replace(BASE, score="lsh_buckets"), q)
    assert (found.need[:, 7].argmax(-1) == 5).all()


def test_window_only_keeps_sink_and_window_and_nothing_else() -> None:
    config = replace(BASE, score="window_only", rule="top_p", threshold=1.0)
    _, q, _, at, grid = energy(256, config)
    kept = select_blocks_cpu(grid.split(q), at, grid, 256, config, SCALE).kept
    assert kept[0, 7].nonzero().flatten().tolist() == [0, 13]


def test_each_head_has_its_own_threshold() -> None:
    config = replace(BASE, score="sampled_rows", rule="top_p", head_thresholds=(1.0, 0.0))
    _, q, _, at, grid = energy(256, config)
    kept = select_blocks_cpu(grid.split(q), at, grid, 256, config, SCALE).kept
    assert kept[0, 7, :14].all()
    assert kept[1, 7].nonzero().flatten().tolist() == [0, 13]


def test_thresholds_for_another_number_of_heads_are_refused() -> None:
    sequence, summaries = paged(64)
    config = replace(BASE, head_thresholds=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="head_thresholds: are 3, but there are 2 KV heads"):
        block_sparse_prefill_cpu(queries(64), sequence, summaries, config, SCALE)


def test_a_square_must_divide_the_block() -> None:
    with pytest.raises(ValueError, match="query_stride: 5 must divide the block size 16"):
        energy(64, replace(BASE, score="antidiagonal", query_stride=5))


def test_a_schedule_overrides_layer_by_layer() -> None:
    attention = SparseAttention(
        dense_layers=frozenset({0}), layers={1: LayerSchedule((0.5, 1.0), 512), 2: LayerSchedule(budget=2048)}
    )
    assert attention.prefill_at(0) is None
    assert attention.decode_at(0) is None
    assert attention.prefill_at(1) == replace(attention.prefill, head_thresholds=(0.5, 1.0))
    assert attention.prefill_at(2) is attention.prefill
    assert attention.decode_at(2) == replace(attention.decode, budget=2048)
    assert attention.decode_at(3) is attention.decode


@pytest.mark.parametrize(
    ("layers", "kv_heads", "message"),
    [(3, 2, "layers.4: the model has 3 layers"), (5, 8, "layers.4.thresholds: are 2, but the model has 8 KV heads")],
)
def test_a_schedule_for_another_model_is_refused(layers: int, kv_heads: int, message: str) -> None:
    attention = SparseAttention(layers={4: LayerSchedule((0.5, 1.0))})
    attention.check(5, 2)
    with pytest.raises(ValueError, match=message):
        attention.check(layers, kv_heads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"thresholds": (1.5,)}, "thresholds: must lie"), ({"budget": 0}, "budget: must be at least 1")],
)
def test_a_schedule_names_what_is_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerSchedule(**arguments)
