"""A node that joins node 0 and computes for it: it has ranks, answers probes, and ends when node 0 has."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final

from sparsity_rpc.errors import EngineError
from sparsity_serving import telemetry
from sparsity_serving.health import Health

from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.engine.launching import endings, launch

if TYPE_CHECKING:
    from sparsity_worker.profiles.tier_profile import TierProfile

# What node 0 takes to end after its streams, and ranks to end one after the other.
_AFTER_DRAIN_SECONDS: Final = 8.0
_TOGETHER_SECONDS: Final = 3.0
log = logging.getLogger("sparsity.worker")


def join(config: WorkerConfig, facts: ModelFacts, profiles: Mapping[str, TierProfile]) -> None:
    """Runs the ranks of a node that joins another, in this process, which must be on its main thread.

    Raises:
        EngineError: when a rank fails, as all do where node 0 is gone without a word.
        SparsityError: when it cannot be started.
    """
    launched = launch(config, facts, profiles)
    try:
        asyncio.run(until_the_end(config, launched.ranks))
    finally:
        launched.engine.shutdown()
    telemetry.shutdown()


async def until_the_end(config: WorkerConfig, ranks: Sequence[BaseProcess]) -> None:
    """Answers probes until ranks end, or one says that it fails; told to end, as long as node 0 needs them.

    In the main thread, whose signals it takes.

    Raises:
        EngineError: when a rank fails; it may still run, and has to be ended.
    """
    health, loop = Health(()), asyncio.get_running_loop()
    stop, failed = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # By which a rank tells that it fails, or hangs; SGLang's own handler would end this process without a word.
    loop.add_signal_handler(signal.SIGQUIT, failed.set)
    # Node 0 reads its files anew by it, and may be told so together with the others.
    loop.add_signal_handler(signal.SIGHUP, log.info, "worker %s has no files to read anew", config.worker_id)
    await health.serve(config.health_listen)
    await health.tell(True)
    nodes = config.nodes
    log.info(
        "worker %s is node %d of %d, and computes for %s", config.worker_id, nodes.rank, nodes.count, nodes.address
    )
    ends = endings(ranks)
    told, failing = (asyncio.create_task(event.wait()) for event in (stop, failed))
    over: set[asyncio.Future[Any]] = {*ends, failing}
    await asyncio.wait({*over, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await health.drain()
    # Node 0 is told to end at the same time, and lets its streams finish first, which need these ranks.
    await asyncio.wait(over, timeout=config.drain_seconds + _AFTER_DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(ends, timeout=_TOGETHER_SECONDS)
    failing.cancel()
    await health.stop()
    if failed.is_set():
        raise EngineError(f"node {nodes.rank}: a rank failed, or node 0 at {nodes.address} is gone; its log says which")
    log.info(
        "worker %s ends %s", config.worker_id, "as node 0 did" if any(end.done() for end in ends) else "before node 0"
    )
