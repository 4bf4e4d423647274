"""`sparsity worker doctor`: what workers are, and whether each does what its tier says, by one request to each.

`sparsity worker tune` is passed on to the worker's own package.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from sparsity.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from sparsity_rpc.status import to_error
from sparsity_serving.access.lease_keys import LeaseKeys
from sparsity_serving.access.leases import sign
from sparsity_serving.engines import SGLANG, engine_of

from sparsity_cli.connection import call_metadata, channel_to
from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, coverage, escaped, out, print_json, reported, tier_word
from sparsity_cli.quality import FORWARDED

app = typer.Typer(help="Look at workers themselves.", no_args_is_help=True)
# A dense worker's request, and tokens that are decoded.
_SHORT, _NEW = 64, 4
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
    """One worker's state.

    Attributes:
        address: its gRPC target.
        lines: what was found, by name, in order.
        problem: what is wrong; empty when nothing is.
    """

    address: str
    lines: dict[str, str]
    problem: str = ""


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
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, help="Seconds for the request to each worker.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Show what workers run and prove it by one request to each; exits with 4 when one fails."""
    with reported():
        keys = LeaseKeys.load(lease_key_file)
        found = [_examine(address, keys, timeout) for address in worker or _known_to(router)]
        if as_json:
            print_json([{"address": each.address, "problem": each.problem} | each.lines for each in found])
        else:
            for each in found:
                _show(each)
        if failed := [each.address for each in found if each.problem]:
            raise UnavailableError(f"{len(failed)} of {len(found)} workers failed: {', '.join(failed)}")


def _show(found: Finding) -> None:
    out.print(f"{'FAILED' if found.problem else 'ok    '}  {escaped(found.address)}", soft_wrap=True)
    for name, detail in found.lines.items():
        out.print(f"  {name:<9} {escaped(detail)}", soft_wrap=True)
    if found.problem:
        out.print(f"  {'problem':<9} {escaped(found.problem)}", soft_wrap=True)


def _known_to(router: str) -> list[str]:
    with channel_to(router) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        fleet = stub.GetFleet(fleet_pb2.GetFleetRequest(), timeout=_ASK_SECONDS, metadata=call_metadata())
    if not fleet.workers:
        raise ConfigurationError(f"{router} knows no workers; name one with --worker")
    return [each.endpoint for each in fleet.workers]


def _examine(address: str, keys: LeaseKeys | None, timeout: float) -> Finding:
    lines: dict[str, str] = {}
    with channel_to(address) as channel:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        try:
            own = stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=_ASK_SECONDS)
            lines |= dict(_described(own))
            started = time.monotonic()
            completion = _one_answer(stub, own, keys, timeout)
            lines["request"], problem = _judged(own, completion, time.monotonic() - started)
        except grpc.RpcError as error:
            problem = str(to_error(error))
    return Finding(address, lines, problem)


def _described(own: worker_pb2.GetCapabilitiesResponse) -> Iterator[tuple[str, str]]:
    engine, proof = own.engine, own.proof
    yield "worker", f"{own.worker_id}, {tier_word(own.tier)} tier"
    cache = f"{own.kv_capacity_tokens} in the KV cache" if own.kv_capacity_tokens else "no KV cache"
    yield "model", f"{own.model}: {own.context_length} tokens of context, {cache}"
    if engine_of(own) != SGLANG:
        yield "engine", f"{engine.name}, which runs no model"
        return
    ranks = f"{engine.tensor_parallel} x " if engine.tensor_parallel > 1 else ""
    graphs = "on" if engine.cuda_graphs else "off"
    yield (
        "engine",
        f"SGLang {own.engine_version} on {ranks}{engine.device}, {engine.dtype}, pages of {engine.page_size} tokens,"
        f" CUDA graphs {graphs}",
    )
    kernels = f", {engine.kernels} kernels" if engine.kernels else ""
    yield "backend", f"{own.backend}{kernels}, profile {own.profile}"
    if own.tier != inference_pb2.TIER_DENSE:
        if engine.summary_bytes:
            yield "summaries", f"{engine.summary_bytes / 2**20:.1f} MiB beside the KV cache{_worth(own)}"
        yield "sparse", f"from {own.sparse_from} prompt tokens"
        if engine.crossover:
            yield "crossover", engine.crossover
        markers = " ... ".join(own.reasoning_markers) or "no markers: answers held dense as reasoning decode densely"
        yield "reasoning", markers if own.dense_reasoning else "cannot decode densely: such requests go to denser tiers"
    when = datetime.fromtimestamp(proof.time.ToNanoseconds() / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    yield (
        "start-up",
        f"{proof.prompt_tokens} tokens at {when}: density {proof.density:.3f},"
        f" {proof.sparse_kernel_calls} of {proof.kernel_calls} kernel calls sparse",
    )


def _worth(own: worker_pb2.GetCapabilitiesResponse) -> str:
    """What the page summaries cost, in tokens that the KV cache could hold in their place."""
    if not own.engine.kv_bytes:
        return ""
    tokens = own.engine.summary_bytes * own.kv_capacity_tokens / own.engine.kv_bytes
    return f", the room of {tokens:.0f} tokens"


def _one_answer(
    stub: Any, own: worker_pb2.GetCapabilitiesResponse, keys: LeaseKeys | None, timeout: float
) -> inference_pb2.Completion:
    """What the worker reports of a prompt of random tokens, long enough to be sparse where its tier is."""
    length = max(_SHORT, min(own.sparse_from, own.context_length - _NEW))
    draw = random.Random()
    request = worker_pb2.WorkerServiceGenerateRequest(
        request_id=f"doctor-{uuid.uuid4().hex}",
        prompt=inference_pb2.TokenIds(ids=[draw.randrange(own.vocabulary_size) for _ in range(length)]),
        sampling=inference_pb2.SamplingParams(max_new_tokens=_NEW, ignore_eos=True),
        tier=own.tier,
        measure_coverage=True,
    )
    if keys is not None:
        request.lease.CopyFrom(sign(keys, request, own.worker_id, "doctor"))
    completion = inference_pb2.Completion()
    for message in stub.Generate(request, timeout=timeout):
        if message.response.HasField("completion"):
            completion = message.response.completion
    return completion


def _judged(
    own: worker_pb2.GetCapabilitiesResponse, completion: inference_pb2.Completion, seconds: float
) -> tuple[str, str]:
    """The request in a line, and what is wrong with it."""
    usage, report = completion.usage, completion.sparsity
    first = usage.time_to_first_token.ToMilliseconds() / 1000
    told = f"{usage.prompt_tokens} tokens, {usage.completion_tokens} new in {seconds:.2f} s, first after {first:.2f} s"
    if not usage.completion_tokens:
        return told, "the stream ended without a completion"
    if not completion.HasField("sparsity"):
        return told, completion.unreported or "it does not report what it attended"
    told += (
        f"; density {report.prefill_density:.3f} prefill, {report.decode_density:.3f} decode,"
        f" coverage {coverage(report)},"
        f" {report.sparse_kernel_calls} of {report.kernel_calls} kernel calls sparse"
    )
    if own.tier == inference_pb2.TIER_DENSE:
        return told, "" if report.prefill_density == 1 else "a dense worker reports that it pruned"
    if own.sparse_from > own.context_length - _NEW:
        return told, f"no prompt reaches the profile's sparse_from of {own.sparse_from}; choose another profile"
    if not report.sparse_kernel_calls or report.prefill_density >= 1:
        return told, "nothing was pruned: the tier costs what dense costs; check the profile"
    return told, ""
