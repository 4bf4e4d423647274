"""The token bucket that rates of this process are held by."""

from __future__ import annotations

import time


class TokenBucket:
    """Tokens that come at a rate and are saved up to a bound; full at first.

    Args:
        per_second: tokens that come.
        most: tokens that are saved up.
    """

    def __init__(self, per_second: float, most: float) -> None:
        self._per_second = per_second
        self._most = self._left = most
        self._filled = time.monotonic()

    def resize(self, per_second: float, most: float) -> None:
        """Goes on at another rate and bound, with what is left."""
        self._fill()
        self._per_second, self._most = per_second, most

    def earn(self, tokens: float) -> None:
        """Adds tokens besides those that come by themselves."""
        self._left = min(self._left + tokens, self._most)

    def spend(self, tokens: float = 1.0) -> bool:
        """Whether there are as many; then they are spent."""
        self._fill()
        if self._left < tokens:
            return False
        self._left -= tokens
        return True

    def _fill(self) -> None:
        now = time.monotonic()
        self.earn((now - self._filled) * self._per_second)
        self._filled = now
