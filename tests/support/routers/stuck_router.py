"""`python -m support.routers.stuck_router FILE ...`: a router whose event loop is held for as long as FILE exists."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from sparsity_router import __main__, server

_serve = server.serve


def _wait(file: Path) -> None:
    """What a callback must not do."""
    while file.exists():
        time.sleep(0.01)


async def _hold(file: Path) -> None:
    while True:
        await asyncio.sleep(0.01)
        _wait(file)


async def _serve_and_hold(*arguments: Any) -> None:
    holding = asyncio.create_task(_hold(file))
    try:
        await _serve(*arguments)
    finally:
        holding.cancel()


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    server.serve = _serve_and_hold
    sys.exit(__main__.main())
