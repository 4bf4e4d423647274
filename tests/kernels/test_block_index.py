from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_kernels.layout.block_index import BlockIndex


@st.composite
def kept_blocks(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept blocks and how many are before each tile."""
    heads, tiles, blocks = (draw(st.integers(1, most)) for most in (3, 5, 70))
    before = torch.tensor(draw(st.lists(st.integers(0, blocks), min_size=tiles, max_size=tiles)))
    seed = draw(st.integers(0, 2**31))
    drawn = torch.rand(heads, tiles, blocks, generator=torch.Generator().manual_seed(seed)) < draw(st.floats(0, 1))
    return drawn & (torch.arange(blocks) < before[:, None]), before


@given(kept_blocks())
def test_an_index_holds_what_it_was_made_of(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    kept, before = case
    index = BlockIndex.of(kept)
    assert torch.equal(index.kept(kept.shape[2]), kept)
    assert index.counts.sum() == index.blocks.numel()
    for head in range(kept.shape[0]):
        for tile in range(kept.shape[1]):
            blocks = index.blocks[int(index.starts[head, tile]) :][: int(index.counts[head, tile])]
            assert blocks.numel() == kept[head, tile].sum()
            assert (blocks.diff() > 0).all()
            assert (blocks < before[tile]).all()
    if before.sum():
        assert torch.allclose(index.density(before), kept.sum((1, 2)) / before.sum())
    else:
        assert (index.density(before) == 1).all()


@given(kept_blocks(), st.integers(1, 3))
def test_a_full_index_keeps_all_that_is_before(case: tuple[torch.Tensor, torch.Tensor], heads: int) -> None:
    kept, before = case
    blocks = kept.shape[2]
    index = BlockIndex.full(before, heads, blocks)
    everything = (torch.arange(blocks) < before[:, None]).expand(heads, -1, -1)
    assert torch.equal(index.kept(blocks), everything)
    assert torch.equal(BlockIndex.of(everything).counts, index.counts)
    assert index.blocks.numel() == blocks


def test_room_between_tiles_is_left_out() -> None:
    index = BlockIndex(*(torch.tensor(each, dtype=torch.int32) for each in ([[5, 0]], [[2, 1]], [3, 9, 9, 9, 9, 0, 2])))
    assert torch.equal(index.kept(4), torch.tensor([[[True, False, True, False], [False, False, False, True]]]))


def test_a_block_that_does_not_exist_is_told() -> None:
    index = BlockIndex(*(torch.tensor(each, dtype=torch.int32) for each in ([[1]], [[1]], [7, 5])))
    with pytest.raises(ValueError, match=r"blocks: must lie in \[0, 5\)"):
        index.kept(5)
