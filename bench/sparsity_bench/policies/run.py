"""The policy benchmark: runs every part, in an order that leaves the store stopped at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsity_serving.benchmark import Row, percentile

from sparsity_bench.policies import latency, scale
from sparsity_bench.policies.replicas import group


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each part is repeated."""

    floor: int = 200
    edits: int = 200
    puts: int = 200
    kills: int = 100
    large: int = 6
    sessions: int = 300


async def measure(model: Path, counts: Counts, say: Callable[[str], None]) -> list[Row]:
    """Measures everything on three router processes and one Valkey.

    Raises:
        EngineError: when a router decides wrongly, or an edit fails: no figure is given then.
    """
    rows = [scale.equality(), scale.fairness()]
    say("decision time ...")
    rows += scale.decisions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("starting Valkey and three routers ...")
        async with group(model, folder) as routers:
            floor = await latency.floor(routers, counts.floor)
            bound = percentile(floor, 0.99)
            rows.append(latency.floor_row(floor))
            say(f"{counts.edits} edits by the command line ...")
            rows += await latency.edits(routers, folder, counts.edits, bound, say)
            rows += await latency.puts(routers, counts.puts, bound, "12 domains")
            say("the kill switch ...")
            rows += await latency.kill_by_store(routers, counts.kills, bound)
            say("concurrent writers, sticky sessions, a policy of a megabyte ...")
            rows += await scale.writers(routers)
            rows.append(await scale.stickiness(routers, counts.sessions))
            rows += await latency.large(routers, counts.large, bound)
            rows += await latency.kill_while_compiling(routers, counts.large, bound)
            say(f"{scale.DOMAINS} domains ...")
            rows.append(await scale.fill(routers))
            rows += await latency.puts(routers, counts.puts, bound, f"{scale.DOMAINS} domains")
            say("the kill switch with the store down ...")
            rows += await latency.kill_without_store(routers, counts.kills // 2, bound)
    return rows
