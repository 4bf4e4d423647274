"""Requests that clients brought by a lease, once they have ended: routers are told, who see nothing of the answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_serving.access.leases import decision_digest

# A router whose stream broke off asks again within this.
_TOLD_SECONDS = 10.0
_MOST = 1024


class Brought:
    """One request, while it runs."""

    def __init__(self) -> None:
        self._prompt = self._answered = 0
        self.completion: inference_pb2.Completion | None = None

    def admitted(self, tokens: int) -> None:
        """The worker took it, with so many tokens of a prompt."""
        self._prompt = tokens

    def add(self, response: inference_pb2.GenerateResponse) -> None:
        """A message of its answer."""
        self._answered += len(response.token_ids)
        if response.HasField("completion"):
            self.completion = response.completion

    def tokens(self, *, failed: bool) -> int:
        """Tokens that were worked on; of what failed before it was answered, nobody has anything."""
        if self.completion is not None:
            return self.completion.usage.prompt_tokens + self.completion.usage.completion_tokens
        return 0 if failed and not self._answered else self._prompt + self._answered


class _Ended(NamedTuple):
    number: int
    time: float
    lease: worker_pb2.EndedLease


class EndedLeases:
    """The last of them."""

    def __init__(self) -> None:
        self._count = 0
        self._ended: deque[_Ended] = deque(maxlen=_MOST)

    @contextmanager
    def noted(
        self, request: worker_pb2.WorkerServiceGenerateRequest, claims: inference_pb2.LeaseClaims | None
    ) -> Iterator[Brought]:
        """Keeps what becomes of a request whose client brings it itself; routers number what they relay."""
        brought, failed = Brought(), False
        try:
            yield brought
        except Exception:
            failed = True
            raise
        finally:
            if claims is not None and claims.decision_id == request.request_id:
                self._keep(claims, brought, failed=failed)

    def _keep(self, claims: inference_pb2.LeaseClaims, brought: Brought, *, failed: bool) -> None:
        digest = decision_digest(claims.decision_id)
        lease = worker_pb2.EndedLease(decision_digest=digest, tier=claims.tier, tokens=brought.tokens(failed=failed))
        if brought.completion is not None:
            lease.completion.CopyFrom(brought.completion)
            if lease.completion.HasField("sparsity"):
                lease.completion.sparsity.ClearField("layers")
        self._count += 1
        self._ended.append(_Ended(self._count, time.monotonic(), lease))

    def lately(self) -> int:
        """How many there had been before those of the last seconds."""
        since = time.monotonic() - _TOLD_SECONDS
        return self._count - sum(1 for _ in takewhile(lambda ended: ended.time > since, reversed(self._ended)))

    def after(self, number: int) -> tuple[list[worker_pb2.EndedLease], int]:
        """Those after the first ``number``, and how many there have been."""
        fresh = takewhile(lambda ended: ended.number > number, reversed(self._ended))
        return [ended.lease for ended in fresh][::-1], self._count
