"""Jobs beside a server's calls, such as following files and other servers: what nobody foresaw ends none of them.

An odd answer from outside is to end neither the server nor the job for good: it is told, counted, and the job begins
anew after a pause. What cannot be used at the start is refused before there are jobs.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from sparsity_serving.metrics.metering import observe

log = logging.getLogger("sparsity.background")
PAUSE_SECONDS: Final = 1.0


class Jobs:
    """The jobs of a process, by name."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        """How often each failed, by name."""
        self._told: set[tuple[str, type[BaseException], str]] = set()

    async def keep(self, name: str, job: Callable[[], Awaitable[None]]) -> None:
        """Runs a job until it returns, however often it fails.

        Args:
            name: of the job, in logs and metrics.
            job: begins it, the first time and after each failure.
        """
        while True:
            try:
                await job()
                return
            except Exception as error:  # whatever it is: the job goes on
                self.failed(name, error)
            await asyncio.sleep(PAUSE_SECONDS)

    def failed(self, name: str, error: Exception) -> None:
        """Counts a failure, and tells of it: once where it comes from the same place again and again."""
        self.failures[name] += 1
        frames = traceback.extract_tb(error.__traceback__)
        kind = (name, type(error), f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "")
        if kind not in self._told:
            self._told.add(kind)
            log.error("%s failed, and goes on; the same again is only counted", name, exc_info=error)

    def observe(self, meter: metrics.Meter) -> None:
        """Registers how often each job failed."""
        observe(meter, [], [("sparsity.background.failures", "{failure}", "Jobs that had to begin anew.", self._read)])

    def _read(self) -> list[Observation]:
        return [Observation(count, {"sparsity.job": name}) for name, count in list(self.failures.items())]


# A process has one event loop, and so one set of jobs.
JOBS: Final = Jobs()
