"""Which kernels Triton compiles: told in the log, and shared out among processes that compile ahead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from sparsity_worker.keys import COMPILED

log = logging.getLogger("sparsity.worker")


def tell_of_compiling() -> None:
    """Has the log say from now on which kernels are compiled, or loaded, and how long that takes."""
    before: Callable[..., None] | None = triton.knobs.compilation.listener

    def told(*, src: Any, times: Any, cache_hit: bool, **rest: Any) -> None:
        if before is not None:
            before(src=src, times=times, cache_hit=cache_hit, **rest)
        function = getattr(src, "fn", None)
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', src)}"
        from_cache = ", from the cache" if cache_hit else ""
        log.warning("kernel %s %s: %.0f ms%s", name, COMPILED, times.total / 1e3, from_cache)

    triton.knobs.compilation.listener = told


@contextmanager
def compiling_only(share: int, of: int) -> Iterator[None]:
    """Has every launch compile its kernel instead of running it, and only each ``of``-th kernel, from ``share`` on.

    Processes that make the same launches in the same order so compile different kernels.
    """
    original, numbers = JITFunction.run, dict[object, int]()

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        # By what the caller fixes; that arguments differ in alignment too is rare, and costs a compilation later.
        variant = (
            function.__module__,
            function.__name__,
            *sorted((name, repr(value)) for name, value in options.items()),
        )
        number = numbers.setdefault(variant, len(numbers))
        if number % of == share:
            original(function, *args, grid=grid, warmup=True, **options)
        # Whoever asks for the kernel, to launch it on his own the next time, gets none.

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original
