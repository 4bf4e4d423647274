"""Threads for work on policies alone: prompts have others, so that neither waits for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads:
    """A few threads of a name."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls ``function`` in one of them, when one is free."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    def shut(self) -> None:
        """Begins nothing more; what runs, the interpreter waits for at its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


# What routers follow, what editors try out, what reckons from the decision log, and what callers ask of their tiers.
BUILDS, DRAFTS, REPLAYS = Threads("policy-builds", 4), Threads("policy-drafts", 4), Threads("policy-replays", 2)
EXPLANATIONS = Threads("policy-explanations", 2)
