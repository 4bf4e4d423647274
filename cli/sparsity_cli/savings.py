"""`sparsity savings`: what sparse attention saved, by domain."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sparsity.v1 import policy_pb2
from sparsity_policies.decisions.costs import H100, Cost, GpuSpeed
from sparsity_rpc.errors import InvalidRequestError

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, clock, err, out, print_json, tier_word, to_dict
from sparsity_cli.policies.service import seconds, service

_TIMEOUT = 300.0
_SECONDS_AN_HOUR = 3600


def savings(
    since: Annotated[str, typer.Option(help="How much of the decision log, such as 1h.")] = "1h",
    gpu_price: Annotated[float | None, typer.Option(help="Of one GPU, an hour; adds what it is worth.")] = None,
    gpu_tflops: Annotated[float, typer.Option(help="That its dense attention does, in 10^12 a second.")] = H100.tflops,
    gpu_bandwidth: Annotated[float, typer.Option(help="That its decoding reads, in TB/s.")] = H100.terabytes,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """What sparse attention saved each domain against dense, by the decision log."""
    with service(router) as api:
        if gpu_price is not None and gpu_price < 0:
            raise InvalidRequestError.of("--gpu-price", "must be from 0")
        for option, value in (("--gpu-tflops", gpu_tflops), ("--gpu-bandwidth", gpu_bandwidth)):
            if value <= 0:
                raise InvalidRequestError.of(option, "must be more than 0")
        request = policy_pb2.GetSavingsRequest()
        request.since.FromMilliseconds(int(seconds(since, "--since") * 1000))
        answer = api.call("GetSavings", request, timeout=_TIMEOUT)
        speed = GpuSpeed(gpu_tflops, gpu_bandwidth)
        if as_json:
            found = to_dict(answer)
            for row, plain in zip(answer.domains, found["domains"], strict=True):
                plain["gpu_seconds_saved"] = _gpu_seconds(row, speed)
                if gpu_price is not None:
                    plain["money_saved"] = _gpu_seconds(row, speed) / _SECONDS_AN_HOUR * gpu_price
            print_json(found)
            return
        if not answer.domains:
            err.print(f"the decision log has nothing of the last {since}")
            return
        _print(answer, speed, gpu_price)


def _print(answer: policy_pb2.GetSavingsResponse, speed: GpuSpeed, price: float | None) -> None:
    names = ["domain", "requests", "tokens", "tiers", "attention", "FLOPs saved", "KV read saved", "GPU-s saved"]
    table = Table(*names, *(["money"] if price is not None else []), "coverage", "guard", box=None)
    for row in answer.domains:
        tiers = ", ".join(f"{tier_word(one.tier)} {one.requests}" for one in row.tiers) or "none"
        gpu = _gpu_seconds(row, speed)
        cells = [row.domain, str(row.requests), f"{row.prompt_tokens} + {row.new_tokens}", tiers]
        if row.HasField("dense"):
            share = f"{row.attention.flops / row.dense.flops:.0%}" if row.dense.flops else "-"
            cells += [share, f"{row.dense.flops - row.attention.flops:.3g}"]
            cells += [f"{(row.dense.kv_bytes - row.attention.kv_bytes) / 1e9:.3g} GB", f"{gpu:.3g}"]
        else:
            cells += ["?"] * 4
        if price is not None:
            cells.append(f"{gpu / _SECONDS_AN_HOUR * price:.4g}")
        cells.append(f"{row.coverage:.3f}" if row.HasField("coverage") else "-")
        table.add_row(*cells, _guard(row))
    out.print(table)
    counted = sum(row.requests for row in answer.domains)
    out.print(f"{counted} logged requests from {clock(answer.start_time)} to {clock(answer.end_time)}")
    if missing := sum(row.unreported_requests for row in answer.domains):
        out.print(f"{missing} of them without a worker's report: reckoned to have saved nothing")
    out.print(
        f"GPU seconds are estimated at {speed.tflops:g} TFLOP/s and {speed.terabytes:g} TB/s;"
        " the log keeps a sample of busy traffic, /metrics counts all of it",
        soft_wrap=True,
    )
    if answer.unreadable_entries:
        err.print(f"{answer.unreadable_entries} entries of the decision log could not be read")


def _gpu_seconds(row: policy_pb2.DomainSavings, speed: GpuSpeed) -> float:
    dense, took = (Cost(each.flops, each.kv_bytes) for each in (row.dense, row.attention))
    return speed.seconds(dense.beyond(took))


def _guard(row: policy_pb2.DomainSavings) -> str:
    if row.guard_tripped:
        return "tripped"
    if not row.HasField("min_coverage"):
        return "none"
    # Without a coverage there was nothing that it could have judged.
    return f"{'holds' if row.HasField('coverage') else 'unjudged'}, from {row.min_coverage:g}"
