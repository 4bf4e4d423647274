"""`sparsity worker doctor`: what workers are, and whether each does what its tiers say, by a request to each of them.

`sparsity worker tune` is passed on to the worker's own package.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, worker_pb2, worker_pb2_grpc
from sparsity_router.fleet.capabilities import by_tier
from sparsity_router.fleet.stock.contract import SCHEME
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from sparsity_rpc.status import to_error
from sparsity_serving.access.lease_keys import LeaseKeys

from sparsity_cli.connection import call_metadata, channel_to
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, escaped, out, print_json, reported, waiting
from sparsity_cli.fleet.examination import described, described_at, judged, one_answer
from sparsity_cli.quality import FORWARDED

app = typer.Typer(help="Look at workers themselves.", no_args_is_help=True)
_ASK_SECONDS = 10.0


@app.command("tune", context_settings=FORWARDED)
def tune(context: typer.Context) -> None:
    """Find from which lengths sparse attention is faster on this GPU; workers heed it (`--help` has the options)."""
    with reported():
        # In a process of its own: the router side loads no torch.
        if importlib.util.find_spec("sglang") is None:
            raise ConfigurationError("sglang: not installed; run pip install 'sparsity-worker[sglang]' and try again")
        raise typer.Exit(subprocess.run([sys.executable, "-m", "sparsity_worker.tune", *context.args]).returncode)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at one worker, or at one of its tiers.

    Attributes:
        lines: what was found, by name, in order.
        problem: what is wrong; empty when nothing is.
        tiers: the same of each tier that it serves, by its word.
    """

    lines: dict[str, str]
    problem: str = ""
    tiers: Mapping[str, Finding] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is found of an only tier stands beside what is found of the worker, too."""
        only = next(iter(self.tiers.values())).lines if len(self.tiers) == 1 else {}
        tiers = {"tiers": {word: own.to_dict() for word, own in self.tiers.items()}} if self.tiers else {}
        return {"problem": self.problem, **self.lines, **only, **tiers}


@app.command("doctor")
def doctor(
    worker: Annotated[
        list[str] | None,
        typer.Option(help="A worker's address; repeat for more. All that the router knows without it."),
    ] = None,
    router: Router = DEFAULT_ROUTER,
    lease_key_file: Annotated[
        Path | None, typer.Option(help="The routers' key, for workers that demand leases.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, help="Seconds for each request.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Show what workers run and prove it by a request to each at each of its tiers; exits with 4 when one fails."""
    with reported():
        keys = LeaseKeys.load(lease_key_file)
        found = {address: _examine(address, keys, timeout, not as_json) for address in worker or _known_to(router)}
        if as_json:
            print_json([{"address": address} | each.to_dict() for address, each in found.items()])
        if failed := [address for address, each in found.items() if each.problem]:
            raise UnavailableError(f"{len(failed)} of {len(found)} workers failed: {', '.join(failed)}")


def _show_lines(lines: dict[str, str], word: str = "") -> None:
    """Prints lines by name; below a tier's word those that are its own."""
    if word:
        out.print(f"  {word}")
    indent = "  " * bool(word)
    for name, detail in lines.items():
        out.print(f"  {indent}{name:<9} {escaped(detail)}", soft_wrap=True)


def _known_to(router: str) -> list[str]:
    with channel_to(router) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        fleet = stub.GetFleet(fleet_pb2.GetFleetRequest(), timeout=_ASK_SECONDS, metadata=call_metadata())
    # Servers of stock SGLang show nothing beyond what `sparsity status` tells.
    found = [each.endpoint for each in fleet.workers if not each.endpoint.startswith(SCHEME)]
    if not found:
        raise ConfigurationError(f"{router} knows no workers of ours; name one with --worker")
    return found


def _examine(address: str, keys: LeaseKeys | None, timeout: float, shown: bool) -> Finding:
    """What is found at one worker; where it is shown, each part as it comes and the verdict last."""
    if shown:
        out.print(escaped(address), soft_wrap=True)
    found = _asked(address, keys, timeout, _show_lines if shown else lambda lines, word: None)
    if shown:
        if found.problem:
            _show_lines({"problem": found.problem})
        out.print(f"{'FAILED' if found.problem else 'ok    '}  {escaped(address)}", soft_wrap=True)
    return found


def _asked(
    address: str, keys: LeaseKeys | None, timeout: float, show: Callable[[dict[str, str], str], None]
) -> Finding:
    """What a worker says, and what a request at each of its tiers shows; ``show`` gets it, and the tier's word."""
    with channel_to(address) as channel:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        try:
            own = stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=_ASK_SECONDS)
        except grpc.RpcError as error:
            return Finding({}, str(to_error(error)))
        lines, tiers = dict(described(own)), {}
        show(lines, "")
        served = by_tier(own)
        for tier, at in served.items():
            with waiting(f"{address}, a request at {tier.word}"):
                tiers[tier.word] = _prove(stub, own, at, keys, timeout)
            show(tiers[tier.word].lines, tier.word if len(served) > 1 else "")
    faults = {word: found.problem for word, found in tiers.items() if found.problem}
    problem = "; ".join(f"{word}: {fault}" if len(tiers) > 1 else fault for word, fault in faults.items())
    return Finding(lines, problem if tiers else "it names no tier", tiers)


def _prove(
    stub: Any,
    own: worker_pb2.GetCapabilitiesResponse,
    at: worker_pb2.TierCapabilities,
    keys: LeaseKeys | None,
    timeout: float,
) -> Finding:
    lines, started = dict(described_at(own, at)), time.monotonic()
    try:
        completion = one_answer(stub, own, at, keys, timeout)
    except grpc.RpcError as error:
        return Finding(lines, str(to_error(error)))
    lines["request"], problem = judged(own, at, completion, time.monotonic() - started)
    return Finding(lines, problem)
