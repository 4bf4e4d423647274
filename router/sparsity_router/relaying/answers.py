"""What all answers to one request share: the workers that died with any of them, and the one that speaks."""

from __future__ import annotations

import time


class Answers:
    """One request's.

    Args:
        lost: workers that died with it before it came here.

    Attributes:
        deaths: workers that died with it in flight.
        speaker: target of the worker that last began an answer, and holds the prompt; empty until one does.
    """

    def __init__(self, lost: int = 0) -> None:
        self.deaths = lost
        self.speaker = ""
        self._died: dict[str, float] = {}

    def died(self, target: str, began: float) -> None:
        """Counts a worker's death, once, however many answers it ended.

        Args:
            target: of the worker.
            began: when it was asked for the answer, by the monotonic clock.
        """
        if began >= self._died.get(target, began):
            self.deaths += 1
            self._died[target] = time.monotonic()
