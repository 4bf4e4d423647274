"""A call that came by HTTP, to the pipeline what a gRPC call is."""

from __future__ import annotations

import time
from typing import Any

from sparsity_rpc.channels import DECISION_ID


class HttpCall:
    """What the pipeline asks of a call's context: who calls with what, until when, and where trailers go.

    Args:
        metadata: of the call; names in lower case.
        peer: who calls, as gRPC writes it.
        seconds: until the caller gives up; None without a deadline.
    """

    def __init__(self, metadata: tuple[tuple[str, str], ...], peer: str, seconds: float | None) -> None:
        self._metadata = metadata
        self._peer = peer
        self._until = None if seconds is None else time.monotonic() + seconds
        self._trailers: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's headers."""
        return self._metadata

    def peer(self) -> str:
        """Who calls."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None without a deadline."""
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def set_trailing_metadata(self, trailers: Any) -> None:
        """Keeps what is told of the decision."""
        self._trailers = tuple(trailers)

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What has been told of the decision so far."""
        return self._trailers

    @property
    def decision_id(self) -> str:
        """Of the decision, as soon as it is told."""
        return dict(self._trailers).get(DECISION_ID, "")
