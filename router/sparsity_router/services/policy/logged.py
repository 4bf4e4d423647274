"""Reads the decision log for the services that reckon from it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence

from google.protobuf.duration_pb2 import Duration
from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.journal import Entry
from sparsity_policies.storage.decisionlog import DecisionLog, Replayed
from sparsity_policies.wire import timestamp
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving.bounds import seconds_of

_BATCH, _LONGEST = 1000, 366 * 86_400.0


class Seen:
    """What was read of the log: how many entries could not be, and from when to when the others are."""

    def __init__(self) -> None:
        self._unreadable = 0
        self._first, self._last = math.inf, -math.inf

    def readable(self, batch: Sequence[Replayed]) -> list[Entry]:
        """The entries of a batch that could be read."""
        entries = [replayed.entry for replayed in batch if replayed.entry is not None]
        self._unreadable += len(batch) - len(entries)
        for entry in entries:
            self._first, self._last = min(self._first, entry.time), max(self._last, entry.time)
        return entries

    def tell(self, answer: policy_pb2.SimulationSummary | policy_pb2.GetSavingsResponse) -> None:
        """Writes it into an answer."""
        answer.unreadable_entries = self._unreadable
        if self._last >= self._first:
            answer.start_time.CopyFrom(timestamp(self._first))
            answer.end_time.CopyFrom(timestamp(self._last))


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
    seconds = seconds_of(name, since)
    if not 0 < seconds <= _LONGEST:
        raise InvalidRequestError.of(name, "must be more than 0 seconds, and a year at most")
    batch: list[Replayed] = []
    async for replayed in decisions.replay(seconds):
        batch.append(replayed)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch
