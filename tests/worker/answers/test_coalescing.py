from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import EngineError
from sparsity_worker.coalescing import Coalescing, coalesced

LONG = 1.0


def piece(number: int, tokens: int = 1) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(text=f"{number},", token_ids=[number] * tokens)


def end() -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(completion=inference_pb2.Completion(worker_id="w"))


class Steps:
    """An engine's stream, with pauses before its messages; knows whether it was closed."""

    def __init__(self, *steps: inference_pb2.GenerateResponse | float | Exception) -> None:
        self._steps = steps
        self.closed = False

    async def run(self) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        try:
            for step in self._steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.closed = True


async def sizes(steps: Steps, how: Coalescing) -> list[int]:
    return [len(response.token_ids) async for response in coalesced(steps.run(), how)]


async def test_the_first_goes_at_once_and_the_rest_by_eights() -> None:
    steps = Steps(*(piece(n) for n in range(20)), end())
    assert await sizes(steps, Coalescing(8, LONG)) == [1, 8, 8, 3, 0]
    assert steps.closed


async def test_a_slow_stream_is_not_held_up() -> None:
    steps = Steps(piece(0), 0.06, piece(1), 0.06, piece(2), end())
    assert await sizes(steps, Coalescing(8, 0.02)) == [1, 1, 1, 0]


async def test_what_is_held_goes_out_in_time_though_nothing_follows() -> None:
    responses = coalesced(Steps(piece(0), piece(1), piece(2), LONG, piece(3)).run(), Coalescing(8, 0.02))
    async with asyncio.timeout(5.0):
        assert [list((await anext(responses)).token_ids) for _ in range(2)] == [[0], [1, 2]]
    await responses.aclose()


async def test_one_token_a_message_holds_nothing() -> None:
    assert await sizes(Steps(*(piece(n) for n in range(5)), end()), Coalescing(1, LONG)) == [1] * 5 + [0]


async def test_leaving_while_a_message_is_awaited_closes_the_engines_stream() -> None:
    steps = Steps(piece(0), piece(1), LONG, piece(2))
    responses = coalesced(steps.run(), Coalescing(8, 0.01))
    await anext(responses)
    await anext(responses)
    reading = asyncio.ensure_future(anext(responses))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert steps.closed


async def test_an_error_of_the_engine_comes_through() -> None:
    steps = Steps(piece(0), piece(1), EngineError("lost"))
    with pytest.raises(EngineError, match="lost"):
        await sizes(steps, Coalescing(8, LONG))
    assert steps.closed


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.003])), max_size=12), st.integers(1, 10))
def test_nothing_is_lost_or_moved(parts: Sequence[tuple[int, float]], tokens: int) -> None:
    async def run() -> None:
        steps: list[inference_pb2.GenerateResponse | float] = []
        for number, (size, pause) in enumerate(parts):
            steps += [pause, piece(number, size)]
        found = [r async for r in coalesced(Steps(*steps, end()).run(), Coalescing(tokens, 0.002))]
        sent = [step for step in steps if not isinstance(step, float)]
        assert "".join(r.text for r in found) == "".join(r.text for r in sent)
        assert [t for r in found for t in r.token_ids] == [t for r in sent for t in r.token_ids]
        assert [r.HasField("completion") for r in found] == [False] * (len(found) - 1) + [True]

    asyncio.run(run())
