"""`sparsity status`: workers, queues and routers as a router sees them, and the embedded service's memory."""

from __future__ import annotations

import time
from typing import Annotated, Any

import psutil
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.state import Running, read_running
from sparsity_rpc.errors import ConfigurationError

from sparsity_cli.connection import call_metadata, channel_to
from sparsity_cli.console import AsJson, State, escaped, out, print_json, reported, tier_word, to_dict

_WATCH_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
Address = Annotated[
    str | None,
    typer.Option("--router", envvar="SPARSITY_ROUTER", help="The router's address; the embedded one without it."),
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second, until interrupted.")]


def status(router: Address = None, state: State = None, watch: Watch = False, as_json: AsJson = False) -> None:
    """Show workers, queues and routers; of the embedded service also memory."""
    with reported():
        running = None if router and not state else _running(state)
        address = router or (running.router if running else "")
        with channel_to(address) as channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)

            def ask() -> fleet_pb2.GetFleetResponse:
                answer: fleet_pb2.GetFleetResponse = stub.GetFleet(
                    fleet_pb2.GetFleetRequest(), timeout=_TIMEOUT_SECONDS, metadata=call_metadata()
                )
                return answer

            if as_json:
                print_json(_report(address, ask(), running))
            elif watch:
                with Live(_view(address, ask(), running), console=out, auto_refresh=False) as live:
                    while True:
                        time.sleep(_WATCH_SECONDS)
                        live.update(_view(address, ask(), running), refresh=True)
            else:
                out.print(_view(address, ask(), running))


def _running(state: Any) -> Running:
    try:
        return read_running(state or state_folder())
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; for a router elsewhere give --router or set SPARSITY_ROUTER") from error


def memory_bytes(running: Running) -> int:
    """Memory of the whole service: each process's share of the pages it has resident (PSS)."""
    root = psutil.Process(running.supervisor)
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def _report(address: str, fleet: fleet_pb2.GetFleetResponse, running: Running | None) -> dict[str, object]:
    report: dict[str, object] = {"router": address} | to_dict(fleet)
    if running:
        report |= {
            "redis_url": running.redis_url,
            "ready_seconds": round(running.ready_seconds, 1),
            "memory_bytes": memory_bytes(running),
        }
    return report


def _view(address: str, fleet: fleet_pb2.GetFleetResponse, running: Running | None) -> Group:
    store = f", store {running.redis_url}" if running else ""
    parts: list[Any] = [f"router {address}{store}", _workers(fleet), "", _tiers(fleet), "", _routers(fleet)]
    parts += [f"problem at {name}: {escaped(problem)}" for name, problem in problems(fleet)]
    if running:
        memory = memory_bytes(running) / 2**30
        parts += ["", f"memory {memory:.2f} GiB, ready in {running.ready_seconds:.0f} s"]
    return Group(*parts)


def _workers(fleet: fleet_pb2.GetFleetResponse) -> Table:
    several = len(served_models(fleet)) > 1
    model = ("model",) if several else ()
    columns = ("state", "tiers", "breaker", "requests", "tokens", "KV", "profile", "problem")
    table = Table("worker", *model, *columns, box=None)
    for worker in fleet.workers:
        tiers, profiles = _told(worker)
        kv = f"{worker.kv_used_tokens / worker.kv_capacity_tokens:.0%}" if worker.kv_capacity_tokens else "-"
        table.add_row(
            worker.worker_id or worker.endpoint,
            *((escaped(worker.served_model),) if several else ()),
            _word(fleet_pb2.WorkerState.Name(worker.state), "WORKER_STATE_"),
            tiers,
            _word(fleet_pb2.BreakerState.Name(worker.breaker), "BREAKER_STATE_"),
            f"{worker.requests}/{worker.max_requests}",
            f"{worker.outstanding_tokens}",
            kv,
            profiles,
            escaped(worker.problem),
        )
    return table


def _told(worker: fleet_pb2.WorkerStatus) -> tuple[str, str]:
    """Its tiers, with the requests that it holds at each where there are several, and their profiles."""
    if len(worker.tiers) < 2:
        return tier_word(worker.tier), worker.profile or "-"
    tiers = ", ".join(f"{tier_word(own.tier)} {own.requests}" for own in worker.tiers)
    return tiers, ", ".join(dict.fromkeys(own.profile for own in worker.tiers if own.profile)) or "-"


def _tiers(fleet: fleet_pb2.GetFleetResponse) -> Table:
    several = len(served_models(fleet)) > 1
    table = Table(*(("model",) if several else ()), "tier", "ready", "waiting", box=None)
    for tier in fleet.tiers:
        model = (escaped(tier.model),) if several else ()
        row = (tier_word(tier.tier), f"{tier.ready_workers}/{tier.workers}", f"{tier.waiting_requests}")
        table.add_row(*model, *row)
    return table


def _routers(fleet: fleet_pb2.GetFleetResponse) -> Table:
    table = Table("router process", "listens", "revision", "content", "age", "lag", box=None)
    for router in fleet.routers:
        age, lag = router.policy_age.ToTimedelta(), router.policy_lag.ToTimedelta()
        mark = " *" if router.router_id == fleet.router_id and len(fleet.routers) > 1 else ""
        times = (f"{age.total_seconds():.1f} s", f"{lag.total_seconds():.1f} s")
        row = (f"{router.router_id}{mark}", router.address, f"{router.policy_revision}", router.content_hash, *times)
        table.add_row(*row)
    return table


def served_models(fleet: fleet_pb2.GetFleetResponse) -> list[str]:
    """The router's models, its first one first."""
    return list(dict.fromkeys(tier.model for tier in fleet.tiers))


def problems(fleet: fleet_pb2.GetFleetResponse) -> list[tuple[str, str]]:
    """What operators must mend, each once for every process that tells it: router and problem."""
    return [(router.router_id, problem) for router in fleet.routers for problem in router.problems]


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
