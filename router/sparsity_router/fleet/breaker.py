"""A circuit breaker of one worker at one tier, and the budget of retries over all of them.

A worker that answers its load stream but fails requests would be tried again and again: after a few failures in a row
at a tier it is left alone there for a while, then tried by one request at a time: what fails at one tier may serve
another. Only faults of the worker count; a caller's mistake,
deadline or cancel does not, and a full worker is backpressure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sparsity_serving.token_bucket import TokenBucket

FAILURES_TO_OPEN = 5
SUCCESSES_TO_CLOSE = 2
OPEN_SECONDS = 30.0
_JITTER = 0.2
# The later, the less is let through.
_WORDS = ("closed", "half_open", "open")


class Breaker:
    """Closed, open, or half open: the last lets one request through at a time, and two good ones close it."""

    def __init__(self) -> None:
        self._failures = 0
        self._successes = 0
        self._open_until: float | None = None
        # Of the requests that run, those that it let through half open; forgotten when it opens.
        self._trials: set[object] = set()

    @property
    def word(self) -> str:
        """`closed`, `open` or `half_open`."""
        if self._open_until is None:
            return "closed"
        return "open" if time.monotonic() < self._open_until else "half_open"

    def allows(self) -> bool:
        """Whether a request may be sent now."""
        word = self.word
        return word == "closed" or (word == "half_open" and not self._trials)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Counts a request while it runs; however it ends, a half-open breaker can be tried again.

        One that began before is no trial: a long answer must not keep a worker out that may be well again.
        """
        trial, trials = object(), self._trials
        if self.word == "half_open":
            trials.add(trial)
        try:
            yield
        finally:
            trials.discard(trial)

    def success(self) -> None:
        """A request was answered whole."""
        self._failures = 0
        if self.word == "half_open":
            self._successes += 1
            if self._successes >= SUCCESSES_TO_CLOSE:
                self.reset()

    def failure(self) -> None:
        """The worker failed a request."""
        self._failures += 1
        self._successes = 0
        if self.word == "half_open" or self._failures >= FAILURES_TO_OPEN:
            # Spread, so that routers do not all try a worker at the same moment.
            self._open_until = time.monotonic() + OPEN_SECONDS * random.uniform(1 - _JITTER, 1 + _JITTER)
            self._trials = set()

    def reset(self) -> None:
        """The worker is a new one, or well again."""
        self._failures = self._successes = 0
        self._open_until = None


def least_through(breakers: Iterable[Breaker]) -> str:
    """The word of the breaker that lets least through; `closed` where there is none."""
    return max((breaker.word for breaker in breakers), key=_WORDS.index, default="closed")


class RetryBudget:
    """Retries as a share of the requests, so that a fleet in trouble is not asked several times as much.

    Args:
        share: retries a request earns.
        per_second: retries that are allowed besides, for a router with little traffic.

    Attributes:
        spent: retries so far.
    """

    def __init__(self, share: float = 0.2, per_second: float = 5.0) -> None:
        self._share = share
        self._bucket = TokenBucket(per_second, 10 * per_second)
        self.spent = 0

    def earn(self) -> None:
        """A request came."""
        self._bucket.earn(self._share)

    def spend(self) -> bool:
        """Whether one retry may be made now."""
        allowed = self._bucket.spend()
        self.spent += allowed
        return allowed
