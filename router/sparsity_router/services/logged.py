"""Reads the decision log for the services that reckon from it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.duration_pb2 import Duration
from sparsity.errors import ConfigurationError, InvalidRequestError
from sparsity_policies.decisionlog import DecisionLog, Replayed

_BATCH = 1000


async def logged(decisions: DecisionLog | None, since: Duration, name: str) -> AsyncIterator[list[Replayed]]:
    """Entries of the last ``since``, oldest first, in batches: work on one in a thread.

    Args:
        decisions: the log; None where the router has none.
        since: how far back.
        name: of the request's field that says so.

    Raises:
        ConfigurationError: without a log.
        InvalidRequestError: when ``since`` is not more than nothing.
        StoreError: when the log cannot be read.
    """
    if decisions is None:
        raise ConfigurationError("this router has no decision log: it was started without --redis-url")
    seconds = since.ToNanoseconds() / 1e9
    if seconds <= 0:
        raise InvalidRequestError.of(name, "must be more than 0 seconds")
    batch: list[Replayed] = []
    async for replayed in decisions.replay(seconds):
        batch.append(replayed)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch
