from __future__ import annotations

import pytest
import torch
from sparse_kernels import PageSummaries
from sparse_kernels.gpu.page_summaries import summarize_pages
from support.kernels.devices import DEVICE, on

PAGE, SUB, HEADS, DIM, PAGES = 16, 4, 2, 16, 7
FIELDS = ("sub_mean", "sub_count", "mean", "value_mean", "spread")


def cache(dtype: torch.dtype = torch.float32, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(PAGES, PAGE, HEADS, DIM, generator=generator) for _ in range(2))
    return (keys + offset).to(dtype), values.to(dtype)


def fresh(dtype: torch.dtype = torch.float32) -> PageSummaries:
    return PageSummaries(PAGES, PAGE, HEADS, DIM, SUB, dtype=dtype)


def summarized(found: PageSummaries, *given: torch.Tensor) -> PageSummaries:
    """The summaries after a launch over keys, values, pages and how much of them is filled."""
    moved = on(DEVICE, found)
    summarize_pages(moved, *on(DEVICE, given))
    return on("cpu", moved)


def ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("wide", [True, False])
def test_equals_the_summaries_of_the_cpu(dtype: torch.dtype, wide: bool) -> None:
    kept = torch.float32 if wide else dtype
    keys, values = cache(dtype)
    pages, filled = ints(5, 0, 3, 6), ints(16, 1, 15, 8)
    wanted = fresh(kept)
    found = summarized(fresh(kept), keys, values, pages, filled)
    wanted.update(keys, values, pages.long(), filled.long())
    for name in FIELDS:
        # The CPU takes the spread from a mean of squares: of a single key it is zero to half the digits.
        near = 2e-3 if name == "spread" else 1e-5
        # Means that nearly tie between two half-precision numbers may round to either.
        share = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}[kept]
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=near, rtol=share, msg=name)
    assert torch.equal(found.stale, wanted.stale)


def test_slots_past_the_end_and_other_pages_are_left_alone() -> None:
    keys, values = cache()
    keys[2, 5:] = float("nan")
    values[2, 5:] = float("nan")
    found = fresh()
    before = {name: getattr(found, name).clone() for name in FIELDS}
    found = summarized(found, keys, values, ints(2, -1), ints(5, 16))
    torch.testing.assert_close(found.mean[2], keys[2, :5].mean(0))
    torch.testing.assert_close(found.value_mean[2], values[2, :5].mean(0))
    assert found.sub_count[2].tolist() == [4, 1, 0, 0]
    others = [0, 1, 3, 4, 5, 6]
    assert all(torch.equal(getattr(found, name)[others], before[name][others]) for name in FIELDS)


def test_a_page_that_grows_is_summarized_again() -> None:
    keys, values = cache()
    found = fresh()
    for count in range(1, PAGE + 1):
        found = summarized(found, keys, values, ints(4), ints(count))
        torch.testing.assert_close(found.mean[4], keys[4, :count].mean(0))


def test_spread_survives_keys_far_from_zero() -> None:
    keys, values = cache(offset=1000.0)
    found = summarized(fresh(), keys, values, ints(1), ints(PAGE))
    wanted = (keys[1].double() - keys[1].double().mean(0)).square().mean((0, 2)).sqrt()
    torch.testing.assert_close(found.spread[1].double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: summarize_pages(fresh(), k, k[..., :8], ints(0), ints(1)), "keys, values: must be laid out alike"),
        (lambda k: summarize_pages(fresh(), k[:, :8], k[:, :8], ints(0), ints(1)), "keys: pages of 8 tokens"),
        (lambda k: summarize_pages(fresh(), k, k, ints(0, 1), ints(1)), "pages, filled: "),
        (lambda k: summarize_pages(fresh(), k, k, ints(0).long(), ints(1)), "pages, filled: "),
        (
            lambda k: summarize_pages(PageSummaries(PAGES, 32, HEADS, DIM, SUB), k, k, ints(0), ints(1)),
            "summaries: are of pages of 32 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(cache()[0])
