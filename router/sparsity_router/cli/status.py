"""`sparsity status`: what runs on this machine."""

from __future__ import annotations

import grpc
import psutil
from rich.table import Table
from sparsity.v1 import policy_pb2, policy_pb2_grpc, worker_pb2, worker_pb2_grpc

from sparsity_router.cli.connection import call_metadata
from sparsity_router.cli.console import AsJson, State, out, print_json, reported, tier_word
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.state import Process, Running, read_running


def status(state: State = None, as_json: AsJson = False) -> None:
    """Show router, workers, their load, and memory of the embedded service."""
    with reported():
        running = read_running(state or state_folder())
        rows = [_worker_row(process) for process in running.workers.values()]
        report = {
            "router": running.router,
            "redis_url": running.redis_url,
            "ready_seconds": round(running.ready_seconds, 1),
            "memory_bytes": memory_bytes(running),
            "policies": _policies(running.router),
            "workers": rows,
        }
        if as_json:
            print_json(report)
            return
        policies = report["policies"]
        out.print(f"router {running.router}: {policies}, store {running.redis_url}", soft_wrap=True)
        table = Table("worker", "state", "tier", "profile", "backend", "requests", "tokens", "probe density", box=None)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        out.print(table)
        out.print(f"memory {report['memory_bytes'] / 2**30:.2f} GiB, ready in {running.ready_seconds:.0f} s")  # type: ignore[operator]


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


def _policies(router: str) -> str:
    with grpc.insecure_channel(router) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        try:
            request = policy_pb2.WatchPoliciesRequest()
            answer = next(iter(stub.WatchPolicies(request, timeout=2.0, metadata=call_metadata())))
        except grpc.RpcError as error:
            return f"unreachable ({error.code().name})"
    rejected = f", rejected: {', '.join(answer.rejected_domains)}" if answer.rejected_domains else ""
    drifted = f", drifted: {', '.join(answer.drifted_domains)}" if answer.drifted_domains else ""
    return f"policy revision {answer.revision}, content {answer.content_hash}{rejected}{drifted}"


def _worker_row(process: Process) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(
        ("worker", "state", "tier", "profile", "backend", "requests", "outstanding_tokens", "probe_density"), "-"
    )
    row["worker"] = process.name
    with grpc.insecure_channel(process.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        try:
            found = stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=2.0)
            load = next(iter(stub.WatchLoad(worker_pb2.WatchLoadRequest(), timeout=2.0)))
        except grpc.RpcError as error:
            return row | {"state": error.code().name.lower()}
    return row | {
        "state": "draining" if load.draining else "ready",
        "tier": tier_word(found.tier),
        "profile": found.profile,
        "backend": found.backend,
        "requests": load.requests,
        "outstanding_tokens": load.outstanding_tokens,
        "probe_density": round(found.proof.density, 3),
    }
