"""SGLang's processes as forks of this one: what it has imported, they need not import again.

Of the CPU engine only, whose start is little else than imports; a device's library does not outlive a fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

_DEVICES: Final = Path("/dev")
# What glibc reads from the environment when a program starts, by its numbers of `mallopt`.
_MALLOPT: Final = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3}


def can_fork(device: str) -> bool:
    """Whether processes may be forks of this one: none of its threads holds a lock that they would wait for for ever.

    Args:
        device: that the engine computes on. Beside a GPU SGLang starts processes in a way of its own.
    """
    return device == "cpu" and threading.active_count() == 1 and not any(_DEVICES.glob("nvidia[0-9]*"))


def remember_title() -> None:
    """Finds where this process's arguments lie, to which forks write their names; before its environment is changed."""
    import setproctitle

    # To look for them names the thread anew, by the first letters of the command.
    name = setproctitle.getthreadtitle()
    setproctitle.getproctitle()
    setproctitle.setthreadtitle(name)


def forking_engine(observe: Callable[[], None]) -> Any:
    """An `sgl.Engine` whose processes are forks.

    Args:
        observe: starts what has threads in this process, once the last process is there.

    Returns:
        Its class. It imports all of SGLang.
    """
    # Of what imports make nearly all stays: looking for the rest takes a quarter of their time.
    gc.disable()
    try:
        from sglang.srt.entrypoints.engine import Engine
    finally:
        gc.enable()

    class ForkingEngine(Engine):  # type: ignore[misc]
        @classmethod
        def _launch_scheduler_processes(
            cls, server_args: Any, port_args: Any, run_scheduler_process_func: Any, **more: Any
        ) -> Any:
            with _forked():
                begin = partial(_begin, run_scheduler_process_func)
                launched = super()._launch_scheduler_processes(server_args, port_args, begin, **more)
            # A node that follows has no others.
            if server_args.node_rank:
                observe()
            return launched

        @classmethod
        def _launch_detokenizer_subprocesses(
            cls, server_args: Any, port_args: Any, run_detokenizer_process_func: Any
        ) -> Any:
            with _forked():
                begin = partial(_begin, run_detokenizer_process_func)
                launched = super()._launch_detokenizer_subprocesses(server_args, port_args, begin)
            observe()
            return launched

    return ForkingEngine


@contextmanager
def _forked() -> Iterator[None]:
    """Processes that start meanwhile are forks; SGLang has them spawned before and after."""
    # What is there by now stays, and is shared as long as no collection of garbage writes to it.
    gc.collect()
    gc.freeze()
    multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method("spawn", force=True)


def _begin(run: Callable[..., None], *arguments: Any) -> None:
    """Makes a fork what a new process would be, and runs it."""
    multiprocessing.set_start_method("spawn", force=True)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    _set_allocator()
    _set_threads()
    run(*arguments)


def _set_allocator() -> None:
    # Other libraries of C have no such function, and do not read these variables either.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, parameter in _MALLOPT.items():
        if mallopt is not None and name in os.environ:
            with suppress(ValueError):
                mallopt(parameter, int(os.environ[name]))


def _set_threads() -> None:
    # Read when torch is first imported, which may have been before it was set.
    import torch

    with suppress(KeyError, ValueError):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
