from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_kernels.layout.batch import BatchTiles

TILE = 32


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=5))
def test_work_covers_every_query_once_and_longest_first(counts: list[tuple[int, int]]) -> None:
    lengths, queries = [prefix + new for prefix, new in counts], [new for _, new in counts]
    tiles = BatchTiles.of(lengths, queries, TILE)
    first = [sum(queries[:number]) for number in range(len(counts))]
    for work, rows in ((tiles.whole, TILE), (tiles.halves, TILE // 2)):
        covered = torch.zeros(sum(queries), dtype=torch.int64)
        positions = []
        for tile, sequence, position, row, prefix, length, *rest in work.tolist():
            assert tiles.sequence[tile] == sequence
            assert tiles.number[tile] == position // TILE
            assert (prefix, length, rest) == (counts[sequence][0], lengths[sequence], [0, 0])
            assert row - position == first[sequence] - prefix
            begin, end = max(position, prefix), min(position + rows, length)
            assert begin < end
            covered[row - position + begin : row - position + end] += 1
            positions.append(position)
        assert (covered == 1).all()
        assert positions == sorted(positions, reverse=True)
        # What copies of 16 bytes, and kernels that are compiled for such, can rely on.
        assert not work.numel() or work.storage_offset() % 4 == 0
    assert tiles.whole.shape == (tiles.number.numel(), 8)


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150), st.booleans()), min_size=1, max_size=5))
def test_tiles_of_some_sequences_are_those_that_they_have_among_all(counts: list[tuple[int, int, bool]]) -> None:
    lengths, queries = [prefix + new for prefix, new, _ in counts], [new for _, new, _ in counts]
    every = BatchTiles.of(lengths, queries, TILE)
    only = BatchTiles.of(lengths, queries, TILE, only=[mine for _, _, mine in counts])
    mine = torch.tensor([mine for _, _, mine in counts])[every.sequence.long()]
    assert torch.equal(only.sequence, every.sequence[mine])
    assert torch.equal(only.number, every.number[mine])
    for some, all_of in ((only.whole, every.whole), (only.halves, every.halves)):
        kept = all_of[mine[all_of[:, 0].long()]]
        # The number of a tile is its place among those that there are; its rows lie where they lay.
        assert torch.equal(some[:, 1:], kept[:, 1:])
        assert torch.equal(only.sequence[some[:, 0].long()], some[:, 1])
        assert torch.equal(only.number[some[:, 0].long()] * TILE, some[:, 2] // TILE * TILE)
