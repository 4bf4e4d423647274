"""Where work is done that would hold up the event loop: in a thread, from a size on that is decided here alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class OnLoop(IntEnum):
    """Bytes up to which a thread costs more than the work, by what that goes through.

    Reading text that may be read in several ways takes about as long as tokenizing it; so does weighing its windows.
    """

    SCAN = 262_144
    TOKENIZER = 16_384


async def off_loop(most: OnLoop, size: int, work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Does ``work`` on ``size`` bytes, in a thread where it would hold up the event loop."""
    if size <= most:
        return work(*arguments, **options)
    return await asyncio.to_thread(work, *arguments, **options)
