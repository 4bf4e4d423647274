"""Several answers to one request: each is relayed by itself, and they come as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from sparsity_rpc.errors import UnavailableError

from sparsity_router.relaying.answers import Answers
from sparsity_router.relaying.relay import Relayed

# Messages that wait for a caller who reads slowly: then the workers wait, too.
_HELD = 4


async def relayed(
    count: int, one: Callable[[int], AsyncGenerator[Relayed]], shared: Answers
) -> AsyncGenerator[tuple[int, Relayed]]:
    """The messages of so many answers, each with its answer's number.

    The first goes alone until it speaks: the others then find its prompt in its worker's prefix cache. Where a worker
    died with one of them, the next begins once all before it have ended: together they would take more workers along.

    Args:
        count: answers.
        one: begins the answer of a number.
        shared: of these answers.

    Raises:
        Exception: as the first that fails does; the others are ended.
    """
    if count == 1:
        async with aclosing(one(0)) as messages:
            async for message in messages:
                yield 0, message
        return
    found: asyncio.Queue[tuple[int, Relayed | Exception | None]] = asyncio.Queue(_HELD)
    running = [asyncio.create_task(_read(found, 0, one))]
    try:
        left = count
        while left:
            number, item = await found.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            begun = len(running)
            until = min(begun + (begun == count - left), count) if shared.deaths else count
            running += [asyncio.create_task(_read(found, other, one)) for other in range(begun, until)]
            if item is not None:
                yield number, item
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _read(
    found: asyncio.Queue[tuple[int, Relayed | Exception | None]],
    number: int,
    one: Callable[[int], AsyncGenerator[Relayed]],
) -> None:
    """Hands on all of one answer, then None, or how it failed."""
    try:
        async with aclosing(one(number)) as messages:
            async for message in messages:
                await found.put((number, message))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # The call to its worker was, and nobody else here: whoever reads would wait for it for ever.
        await found.put((number, UnavailableError("the call to a worker was cancelled by this router")))
    except Exception as error:  # raised again where it is read
        await found.put((number, error))
    else:
        await found.put((number, None))
