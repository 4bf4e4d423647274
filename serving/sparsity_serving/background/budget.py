"""Asks a process that may be late, or lost: an answer within a time budget, or why there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

_RETRY_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 1.0
_Answer = TypeVar("_Answer")


async def within(
    seconds: float, answer: Awaitable[_Answer | None], name: str, refused: Callable[[str], Exception]
) -> _Answer:
    """What a process answers.

    Args:
        seconds: the time budget.
        answer: of the process; None where it has seen itself that it is late.
        name: of what is asked, for words.
        refused: the error that says why there is no answer.
    """
    try:
        async with asyncio.timeout(seconds):
            found = await answer
    except TimeoutError:
        found = None
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        # Not the caller went away, but the process that was to answer.
        raise refused(f"{name} was started anew meanwhile") from error
    except Exception as error:  # whatever the process raised, there is no answer
        raise refused(f"{name} failed: {type(error).__name__}: {error}") from error
    if found is None:
        raise refused(f"{name} ran out of time ({seconds:g} s)")
    return found


async def kept_alive(
    look: Callable[[], Awaitable[None]], close: Callable[[], None], log: logging.Logger, lost: str
) -> None:
    """Looks after a process again and again, for as long as it runs.

    Args:
        look: starts it where it is not there, and finds out when it is lost.
        close: ends it.
        log: is told ``lost`` then.
        lost: what that means for requests.
    """
    try:
        while True:
            try:
                await look()
            except (BrokenProcessPool, OSError):
                log.exception(lost)
                close()
                await asyncio.sleep(_RETRY_SECONDS)
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        close()
