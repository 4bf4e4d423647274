"""Files that options name, taken up anew when they change: by looking now and then, and at once by SIGHUP.

What cannot be taken up changes nothing: the last good contents hold, and it is told in the log, by a metric and, of a
router, by `sparsity status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import Observation
from sparsity_rpc.errors import SparsityError

from sparsity_serving.metrics.metering import observe

log = logging.getLogger("sparsity.reloading")
LOOK_SECONDS: Final = 1.0
T = TypeVar("T")


class ReloadedFile(Generic[T]):
    """One file, whose contents were taken up once before.

    Args:
        option: that names it, such as `--access`.
        path: where it lies.
        read: what it says; raises a SparsityError where that cannot be used.
        take: what uses it, from the next call on.
    """

    def __init__(self, option: str, path: Path, read: Callable[[Path], T], take: Callable[[T], None]) -> None:
        self.option = option
        self.problem = ""
        self.taken = 0
        self._path = path
        self._read = read
        self._take = take
        self._digest = self._look()

    def _look(self) -> bytes:
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return b""

    async def look(self, *, anew: bool = False) -> None:
        """Takes the file up if it has changed since it was last looked at, or ``anew`` as it is."""
        digest = await asyncio.to_thread(self._look)
        if digest == self._digest and not anew:
            return
        try:
            found = await asyncio.to_thread(self._read, self._path)
            self._take(found)
        except Exception as error:  # whatever was written there, the other files are followed
            known = isinstance(error, SparsityError)
            problem = str(error) if known else f"{self.option}: {self._path}: {type(error).__name__}: {error}"
            if problem != self.problem or digest != self._digest:
                log.error("%s; what it said before holds", problem)
            self.problem = problem
        else:
            self.taken += 1
            self.problem = ""
            log.info("%s: %s is taken up", self.option, self._path)
        self._digest = digest


class Reloading:
    """The files of one process."""

    def __init__(self, *files: ReloadedFile[Any]) -> None:
        self._files = files
        self._asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def hurry(self) -> None:
        """Takes all of them up at once; from a signal's handler or any thread."""
        self._loop.call_soon_threadsafe(self._asked.set)

    def problems(self) -> list[str]:
        """What keeps files from being taken up, in words."""
        return [file.problem for file in self._files if file.problem]

    async def run(self) -> None:
        """Follows the files, for as long as it runs."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            anew = self._asked.is_set()
            self._asked.clear()
            for file in self._files:
                await file.look(anew=anew)

    def observe(self, meter: metrics.Meter) -> None:
        """Registers what became of changes, by option."""

        def each(value: Callable[[ReloadedFile[Any]], int]) -> Callable[[], list[Observation]]:
            return lambda: [Observation(value(file), {"sparsity.option": file.option}) for file in self._files]

        rejected, taken = "1 while a changed file cannot be taken up.", "Changes of a file that were taken up."
        observe(
            meter,
            [("sparsity.options_file.rejected", "1", rejected, each(lambda file: int(bool(file.problem))))],
            [("sparsity.options_file.reloads", "{change}", taken, each(lambda file: file.taken))],
        )
