"""The clocks of the router benchmarks."""

from __future__ import annotations

import pytest
from sparsity_bench import timing


async def test_ways_take_turns_and_each_is_charged_its_own_time() -> None:
    spent, order = 0.0, []

    def way(name: str, seconds: float) -> tuple[timing.Call, timing.Clock]:
        async def call() -> None:
            nonlocal spent
            spent += seconds
            order.append(name)

        return call, lambda: spent

    found = await timing.by_turns({"a": way("a", 1e-3), "b": way("b", 3e-3)}, 50)
    assert {name: one.cpu for name, one in found.items()} == pytest.approx({"a": 1000.0, "b": 3000.0})
    assert order == ["a"] * 5 + ["b"] * 5 + (["a"] * 10 + ["b"] * 10) * 5


@pytest.mark.parametrize("count", [1, 3, 7])
async def test_few_calls_are_all_made(count: int) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1

    assert (await timing.by_turns({"a": (call, lambda: float(calls)), "b": (call, lambda: 0.0)}, count))["b"].cpu == 0.0
    assert calls == 2 * (count + 5)
