"""How long a worker may say nothing in a stream: one whose load goes on being reported may hang all the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import Metadata
from sparsity_policies.model import Tier
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from sparsity_rpc.silence import Timeouts, spoken_aio

FIRST_SECONDS, NEXT_SECONDS = 300.0, 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds by tier, the densest first, in seconds: to the first message, which waits for the prompt, and between."""

    first: tuple[float, ...] = (FIRST_SECONDS,) * len(Tier)
    between: tuple[float, ...] = (NEXT_SECONDS,) * len(Tier)

    def at(self, tier: Tier) -> Timeouts:
        """The bounds at one tier."""
        place = tier - Tier.DENSE
        return Timeouts(self.first[place], self.between[place])


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


class SilentError(grpc.aio.AioRpcError):
    """A worker said nothing for too long: INTERNAL, so that it is retried, hedged and counted as any failure is.

    Args:
        problem: in words.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), problem)


async def spoken(call: Any, tier: Tier, patience: Patience) -> AsyncGenerator[Any]:
    """The messages of a call; one that says nothing for too long is cancelled. What the reader takes is not counted.

    Raises:
        SilentError: where it was too long silent.
        grpc.aio.AioRpcError: as the call ends; INTERNAL where it cannot be read.
    """
    try:
        async with aclosing(spoken_aio(call, patience.at(tier))) as messages:
            async for message in messages:
                yield message
    except UnavailableError as error:
        raise SilentError(str(error)) from None
