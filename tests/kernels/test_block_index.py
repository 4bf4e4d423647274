from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_kernels.block_index import WORD_BITS, BlockIndex, pruned_words


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
    assert index.indptr[0, 0] == 0
    assert index.indptr[-1, -1] == index.blocks.numel()
    assert torch.equal(index.indptr[1:, 0], index.indptr[:-1, -1])
    assert (index.indptr.diff(dim=1) >= 0).all()
    for head in range(kept.shape[0]):
        for tile in range(kept.shape[1]):
            blocks = index.blocks[index.indptr[head, tile] : index.indptr[head, tile + 1]]
            assert (blocks.diff() > 0).all()
            assert (blocks < before[tile]).all()
    if before.sum():
        assert torch.allclose(index.density(before), kept.sum((1, 2)) / before.sum())
    else:
        assert (index.density(before) == 1).all()


@given(kept_blocks())
def test_pruned_and_kept_are_all_that_is_before(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    kept, before = case
    words = pruned_words(kept, before)
    assert words.dtype == torch.int32
    bits = (words.long()[..., None] >> torch.arange(WORD_BITS)) & 1
    pruned = bits.flatten(2)[..., : kept.shape[2]].bool()
    assert bits.sum() == pruned.sum()
    assert not (pruned & kept).any()
    assert torch.equal(pruned | kept, (torch.arange(kept.shape[2]) < before[:, None]).expand_as(kept))


def test_a_block_that_does_not_exist_is_told() -> None:
    index = BlockIndex(torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([5], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"blocks: must lie in \[0, 5\)"):
        index.kept(5)
