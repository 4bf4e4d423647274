"""Joins the messages of a fast stream: a message costs every hop the same, however many tokens it carries.

The first message goes out at once, and so does any that comes after a pause, so that neither the time to the first
token nor a slow stream is held up; what follows closely is held until there are enough tokens or enough time passed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from sparsity.v1 import inference_pb2

Responses = AsyncGenerator[inference_pb2.GenerateResponse]


@dataclass(frozen=True, slots=True)
class Coalescing:
    """When held messages go out, whichever comes first.

    Attributes:
        tokens: tokens that a message may gather; 1 holds nothing.
        seconds: between two messages of a stream.
    """

    tokens: int = 8
    seconds: float = 0.025


async def coalesced(responses: Responses, how: Coalescing) -> Responses:
    """The same contents in order, in fewer messages; a completion goes out at once, alone and last.

    Args:
        responses: one message a step of the engine; closed with this generator.
        how: when to let go.
    """
    held = inference_pb2.GenerateResponse()
    sent_at = float("-inf")
    pending: asyncio.Future[inference_pb2.GenerateResponse] | None = None
    async with aclosing(responses):
        try:
            while True:
                if held.ByteSize():
                    pending = pending or asyncio.ensure_future(anext(responses))
                    await asyncio.wait({pending}, timeout=max(sent_at + how.seconds - time.monotonic(), 0.0))
                    if not pending.done():
                        yield held
                        held, sent_at = inference_pb2.GenerateResponse(), time.monotonic()
                        continue
                try:
                    response, pending = await (pending or anext(responses)), None
                except StopAsyncIteration:
                    pending = None
                    break
                if response.HasField("completion"):
                    if held.ByteSize():
                        yield held
                        held = inference_pb2.GenerateResponse()
                    yield response
                    continue
                _join(held, response)
                if len(held.token_ids) >= how.tokens or time.monotonic() >= sent_at + how.seconds:
                    yield held
                    held, sent_at = inference_pb2.GenerateResponse(), time.monotonic()
            if held.ByteSize():
                yield held
        finally:
            if pending is not None:
                pending.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await pending


def _join(held: inference_pb2.GenerateResponse, response: inference_pb2.GenerateResponse) -> None:
    """Adds a message's contents: lists are longer by it, texts go on."""
    text, reasoning = held.text + response.text, held.reasoning + response.reasoning
    held.MergeFrom(response)
    held.text, held.reasoning = text, reasoning
