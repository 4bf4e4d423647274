from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_kernels.layout.batch import PagedBatch
from sparse_kernels.mean_correction import WIDTH, Corrections
from support.kernels.paging import PAGE, joined

TILE = 32


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Tokens and queries of one to three sequences."""
    lengths = draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))
    return [(length, draw(st.integers(1, length))) for length in lengths]


@given(batches(), st.sampled_from([1, 2, 4]), st.floats(0, 1))
def test_units_stand_for_what_is_pruned(counts: list[tuple[int, int]], unit: int, share: float) -> None:
    sequences, summaries = joined([length for length, _ in counts])
    batch = PagedBatch.of(sequences, [new for _, new in counts], TILE)
    blocks, tiles = batch.tables.shape[1], batch.tiles.number.numel()
    drawn = torch.rand(2, tiles, blocks, generator=torch.Generator().manual_seed(unit)) < share
    kept = drawn & (torch.arange(blocks) < batch.before[:, None])
    made = Corrections.of(kept, batch, summaries, unit, torch.float32)

    assert made.weights.dtype == torch.float16
    assert made.weights.shape[2] % WIDTH == 0
    weights = made.weights.float().exp2()
    for tile in range(tiles):
        units = int(batch.before[tile]) // unit
        pruned = (~kept[:, tile, : units * unit]).view(2, units, unit).sum(-1)
        assert torch.allclose(weights[:, tile, :units], PAGE * pruned.float(), rtol=1e-2)
        assert not weights[:, tile, units:].any()
    # Finite wherever kernels read, though unwritten slots of the cache are NaN.
    assert made.means.isfinite().all()
    assert made.value_means.isfinite().all()
    for number, sequence in enumerate(sequences):
        at = int(made.offsets[number])
        whole = sequence.length // PAGE // unit
        for made_of, part in zip((made.means, made.value_means), sequence.gather(), strict=True):
            wanted = part[:, : whole * unit].reshape(2, whole, unit * PAGE, 8).mean(2)
            assert torch.allclose(made_of[at : at + whole].transpose(0, 1), wanted, atol=1e-5)
            assert not made_of[at + -(-blocks // unit) : at + WIDTH].any()


def test_other_units_are_refused() -> None:
    sequences, summaries = joined([40])
    batch = PagedBatch.of(sequences, [40], TILE)
    with pytest.raises(ValueError, match="unit: must be 1, 2 or 4 blocks, not 3"):
        Corrections.of(torch.zeros(2, 2, 3, dtype=torch.bool), batch, summaries, 3, torch.float32)
