"""Block scores of a batch against the CPU's, sequence by sequence, and what is selected by them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from sparse_kernels import PrefillConfig
from sparse_kernels.gpu.block_energy import block_energy
from sparse_kernels.gpu.block_selection import select_blocks
from sparse_kernels.reference.block_selection import block_energy_reference
from support.kernels.devices import launch
from support.kernels.paging import PAGE, SUB
from support.kernels.selecting import SCALE
from support.kernels.selecting import SelectionCase as Case

CONFIG = PrefillConfig(
    score="sub_means", rule="top_p", threshold=0.7, query_tile=32, query_stride=8, peak=4.0, sink=16, window=16,
    dense_last_tiles=0,
)  # fmt: skip
SCORES = ("sampled_rows", "sub_means", "block_means")


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 64, 111, 128, 200])
def test_matches_the_reference(score: str, length: int) -> None:
    case, config = Case([(0, length)]), replace(CONFIG, score=score)
    found = launch(block_energy, case.q, case.batch, case.summaries, config, SCALE)
    keys = case.sequences[0].gather()[0].flatten(1, 2)[:, :length]
    mass, need = block_energy_reference(case.q, keys, PAGE, SUB, config, SCALE)
    assert torch.allclose(found.mass.double(), mass, atol=2e-6)
    assert torch.allclose(found.need.double(), need, atol=1e-4)


@pytest.mark.parametrize("rule", [("top_p", 0.7), ("max_threshold", 0.1), ("top_k", 0.3)])
@pytest.mark.parametrize("score", SCORES)
def test_a_batch_selects_what_each_sequence_does_alone(score: str, rule: tuple[str, float]) -> None:
    case = Case([(0, 111), (48, 65), (100, 1), (5, 200), (64, 64)])
    config = replace(CONFIG, score=score, rule=rule[0], threshold=rule[1])
    found = launch(select_blocks, case.q, case.batch, case.summaries, config, SCALE, totals=case.totals)
    assert 0 < found.kept.float().mean() < 0.5
    for number, sequence in enumerate(case.sequences):
        wanted, blocks = case.one(number, config), -(-sequence.length // PAGE)
        assert torch.equal(case.of(number, found.kept)[..., :blocks], wanted.kept)
        assert not case.of(number, found.kept)[..., blocks:].any()
        assert torch.allclose(case.of(number, found.coverage), wanted.coverage, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_a_share_of_the_blocks_is_one_of_the_whole_prompts(score: str) -> None:
    """A tile of a first chunk keeps as many as one of a prompt that is read at once."""
    case, totals = Case([(0, 160), (64, 64)]), torch.tensor([640, 128])
    config = replace(CONFIG, score=score, rule="top_k", threshold=0.1)
    found = launch(select_blocks, case.q, case.batch, case.summaries, config, SCALE, totals=totals)
    for number, whole in enumerate(totals.tolist()):
        wanted = case.one(number, config, whole).kept
        assert torch.equal(case.of(number, found.kept)[..., : wanted.shape[2]], wanted)
    # Sink, window, and four more, where 1 would be a tenth of what is there.
    assert case.of(0, found.kept)[:, -1].sum(-1).tolist() == [6, 6]


def test_thresholds_by_head_and_dense_last_tiles() -> None:
    case, total = Case([(0, 160), (0, 160)]), 300
    config = replace(CONFIG, head_thresholds=(0.0, 0.9), dense_last_tiles=1)
    # The first is not at its end yet.
    totals = torch.tensor([total, 160])
    found = launch(select_blocks, case.q, case.batch, case.summaries, config, SCALE, totals=totals)
    for number, whole in enumerate((total, 160)):
        assert torch.equal(case.of(number, found.kept), case.one(number, config, whole).kept)
    last = [case.of(number, found.kept)[0, -1, :8].all() for number in (0, 1)]
    assert last == [False, True]


def test_dense_sequences_keep_everything_and_change_nobody_else() -> None:
    case = Case([(0, 160), (0, 100)])
    asked = {"totals": case.totals}
    plain = launch(select_blocks, case.q, case.batch, case.summaries, CONFIG, SCALE, **asked)
    mixed = launch(
        select_blocks, case.q, case.batch, case.summaries, CONFIG, SCALE, **asked, dense=torch.tensor([False, True])
    )
    assert torch.equal(case.of(0, mixed.kept), case.of(0, plain.kept))
    before = torch.arange(plain.kept.shape[2]) < case.batch.before[:, None]
    assert torch.equal(case.of(1, mixed.kept), case.of(1, before[None].expand(2, -1, -1)))
    assert torch.equal(case.of(1, mixed.coverage), torch.ones(2, 4))


def test_threshold_zero_of_the_strongest_keeps_everything() -> None:
    case = Case([(0, 200)])
    config = replace(CONFIG, rule="max_threshold", threshold=0.0)
    found = launch(select_blocks, case.q, case.batch, case.summaries, config, SCALE, totals=case.totals)
    assert torch.equal(found.kept, (torch.arange(13) < case.batch.before[:, None])[None].expand(2, -1, -1))
    assert torch.equal(found.coverage, torch.ones(2, 7))


def test_queries_of_zero_spread_evenly() -> None:
    case = Case([(0, 160)])
    found = launch(
        block_energy, torch.zeros_like(case.q), case.batch, case.summaries, replace(CONFIG, query_stride=32), SCALE
    )
    # The last row of the last tile sees all ten blocks.
    assert torch.allclose(found.mass[:, -1], torch.full((2, 10), 0.1))
    assert torch.allclose(found.need[:, -1, 1:], torch.full((2, 9), 1 / 9))


def test_dtypes(dtype: torch.dtype) -> None:
    case = Case([(0, 111), (48, 65)], dtype)
    found = launch(block_energy, case.q, case.batch, case.summaries, CONFIG, SCALE)
    wide = case.batch._replace(keys=case.batch.keys.float(), values=case.batch.values.float())
    summaries = copy.copy(case.summaries)
    for name in ("mean", "sub_mean", "value_mean"):
        setattr(summaries, name, getattr(summaries, name).float())
    exact = launch(block_energy, case.q.float(), wide, summaries, CONFIG, SCALE)
    assert (found.mass - exact.mass).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "flex"}, "score: must be one of sampled_rows, sub_means, block_means on a GPU"),
        ({"query_tile": 64}, "query_tile is 64"),
        ({"head_thresholds": (0.5,) * 3}, "head_thresholds: are 3"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], words: str) -> None:
    case = Case([(0, 64)])
    with pytest.raises(ValueError, match=words):
        select_blocks(case.q, case.batch, case.summaries, replace(CONFIG, **change), SCALE, totals=case.totals)
