"""Tokens that are drawn by their requests' seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparsity_worker.plugin.choosing.seeds import choose, draw

ROWS = 20_000
PROBABILITIES = torch.tensor([0.15, 0.5, 0.0, 0.3, 0.05])
_MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """The next number of the generator's published reference."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)


def shares(tokens: torch.Tensor) -> list[float]:
    return (torch.bincount(tokens.view(-1).long(), minlength=len(PROBABILITIES)) / tokens.numel()).tolist()


def chosen(seeds: torch.Tensor, **limits: float) -> torch.Tensor:
    rows = len(seeds)
    asked: list[Any] = [
        torch.full((rows,), limits.get("top_k", 2**30)),
        torch.full((rows,), limits.get("top_p", 1.0)),
        torch.full((rows,), limits.get("min_p", 0.0)),
    ]
    places = torch.full((rows,), 3)
    found: torch.Tensor = choose(pytest.fail, PROBABILITIES.repeat(rows, 1), *asked, bool(limits), seeds, places)
    return found


@pytest.mark.parametrize("several", ["seeds", "places"])
def test_tokens_come_as_often_as_they_are_likely(several: str) -> None:
    counted, same = torch.arange(ROWS), torch.full((ROWS,), 7)
    seeds, places = (counted, same) if several == "seeds" else (same, counted)
    found = shares(draw(pytest.fail, PROBABILITIES.log().expand(ROWS, -1), seeds, places))
    assert found == pytest.approx(PROBABILITIES.tolist(), abs=4 * (0.25 / ROWS) ** 0.5)
    assert found[2] == 0


def test_the_first_token_is_the_published_generators() -> None:
    step, seed, place = 0x9E3779B97F4A7C15, 1_234_567, 41
    row = splitmix((seed + step * (place + 1)) & _MASK)
    uniform = [((splitmix((row + step * (token + 1)) & _MASK) >> 12) + 0.5) / 2**52 for token in range(50)]
    likely = torch.ones(1, 50).log()
    drawn = draw(pytest.fail, likely, torch.tensor([seed]), torch.tensor([place]))
    # Of tokens as likely as each other, the one whose exponential wait -ln(u) is the shortest.
    assert drawn.item() == max(range(50), key=uniform.__getitem__)


def test_who_limits_nothing_draws_the_same_whether_or_not_others_do() -> None:
    seeds, places = torch.arange(500), torch.full((500,), 3)
    alone = draw(pytest.fail, PROBABILITIES.log().expand(500, -1), seeds, places).view(-1)
    assert torch.equal(chosen(seeds), alone.to(torch.int32))


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"top_k": 2}, {1, 3}), ({"top_p": 0.75}, {1, 3}), ({"min_p": 0.25}, {0, 1, 3}), ({"top_k": 1}, {1})],
)
def test_limits_leave_tokens_out_and_the_rest_as_likely_as_before(limits: dict[str, float], left: set[int]) -> None:
    kept = torch.tensor([each if token in left else 0.0 for token, each in enumerate(PROBABILITIES.tolist())])
    found = shares(chosen(torch.arange(ROWS), **limits))
    assert found == pytest.approx((kept / kept.sum()).tolist(), abs=4 * (0.25 / ROWS) ** 0.5)
    assert {token for token, share in enumerate(found) if share} == left


def test_a_batch_without_seeds_is_left_to_sglang() -> None:
    kept = choose(lambda *args, **more: (args, more), "probs", 1, 2, 3, True, None, "places", max_top_k=4)
    assert kept == (("probs", 1, 2, 3, True, None, "places"), {"max_top_k": 4})
