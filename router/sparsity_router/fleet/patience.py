"""How long a worker may say nothing in a stream: one whose load goes on being reported may hang all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import Metadata
from sparsity_policies.model import Tier
from sparsity_rpc.errors import ConfigurationError

FIRST_SECONDS, NEXT_SECONDS = 300.0, 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds by tier, the densest first, in seconds: to the first message, which waits for the prompt, and between."""

    first: tuple[float, ...] = (FIRST_SECONDS,) * len(Tier)
    between: tuple[float, ...] = (NEXT_SECONDS,) * len(Tier)


def read_seconds(option: str, text: str) -> tuple[float, ...]:
    """Bounds by tier from such as `300` or `dense=600,moderate=300,aggressive=300`.

    Raises:
        ConfigurationError: naming the option.
    """
    words = [tier.word for tier in Tier]
    parts = dict(part.partition("=")[::2] for part in text.split(",")) if "=" in text else dict.fromkeys(words, text)
    try:
        found = tuple(float(parts[word]) for word in words)
    except (KeyError, ValueError):
        found = ()
    if parts.keys() != set(words) or not all(0 < seconds < float("inf") for seconds in found) or not found:
        raise ConfigurationError(
            f"{option}: must be seconds, more than 0, or such for {', '.join(words)}, not {text!r}"
        )
    return found


async def spoken(call: Any, tier: Tier, patience: Patience) -> AsyncGenerator[Any]:
    """The messages of a call; one that says nothing for too long is cancelled. What the reader takes is not counted.

    Raises:
        grpc.aio.AioRpcError: as the call ends, INTERNAL where it was too long silent.
    """
    loop, silent = asyncio.get_running_loop(), 0.0

    def give_up(seconds: float) -> None:
        nonlocal silent
        silent = seconds
        call.cancel()

    place = tier - Tier.DENSE
    timer = loop.call_later(patience.first[place], give_up, patience.first[place])
    try:
        async for message in call:
            timer.cancel()
            yield message
            timer = loop.call_later(patience.between[place], give_up, patience.between[place])
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not silent or (task is not None and task.cancelling()):
            raise
        problem = f"said nothing for {silent:g} s"
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), problem) from None
    finally:
        timer.cancel()
