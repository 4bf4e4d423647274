"""`sparsity capacity`: how many GPUs a load needs, all dense, in a pool a tier, and on shared workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.tiers import Tier

from sparsity_cli.capacity.costs import COMMITTED, Costs, read_costs
from sparsity_cli.capacity.plan import Plan, Worker, plan
from sparsity_cli.console import AsJson, out, print_json, reported

_LOADS = "1,2,4,8,16,32"
_HUNDRED = 100.0
_MOST = 10_000.0


def capacity(
    requests_per_second: Annotated[float | None, typer.Option(help="What comes.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="The same in tokens, of prompts and answers.")] = None,
    load: Annotated[
        str | None, typer.Option(help=f"Or in dense workers kept busy, separated by commas; {_LOADS} without any.")
    ] = None,
    mix: Annotated[
        str, typer.Option(help="Requests by tier, in percent, after policy.")
    ] = "dense=50,moderate=25,aggressive=25",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each request.")] = 24_000,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 128,
    gpus_per_worker: Annotated[int, typer.Option(min=1, help="That hold the model together.")] = 1,
    dense_seconds: Annotated[
        float | None, typer.Option(help="That one dense request keeps a worker of yours busy; measured without it.")
    ] = None,
    places: Annotated[int, typer.Option(min=1, max=4096, help="Requests that a worker serves at once.")] = 32,
    may_wait: Annotated[float, typer.Option(help="Share of the requests that may wait for a place.")] = 0.1,
    spare: Annotated[int, typer.Option(min=0, max=1000, help="Workers of each pool that may be away.")] = 1,
    results: Annotated[
        Path, typer.Option(help="Result file of `make bench-serving`.", show_default="docs/benchmarks/serving.json")
    ] = COMMITTED,
    as_json: AsJson = False,
) -> None:
    """How many GPUs a load needs: all of it dense, in a pool a tier, and on workers that serve every tier."""
    with reported():
        if not 0 < may_wait < 1:
            raise InvalidRequestError.of("--may-wait", f"must be between 0 and 1, not {may_wait:g}")
        for option, value in (
            ("--requests-per-second", requests_per_second),
            ("--tokens-per-second", tokens_per_second),
            ("--dense-seconds", dense_seconds),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise InvalidRequestError.of(option, f"must be more than 0, not {value:g}")
        costs, shares = read_costs(results), _mix(mix)
        seconds = {tier: costs.seconds(tier, prompt_tokens, new_tokens, places) for tier in Tier}
        busy = dense_seconds if dense_seconds is not None else seconds[Tier.DENSE] / gpus_per_worker
        if tokens_per_second is not None:
            requests = tokens_per_second / (prompt_tokens + new_tokens)
            loads = _one("--tokens-per-second", requests * busy, requests_per_second, load)
        elif requests_per_second is not None:
            loads = _one("--requests-per-second", requests_per_second * busy, load)
        else:
            loads = _loads(load or _LOADS)
        work = {tier: seconds[tier] / seconds[Tier.DENSE] for tier in Tier}
        of_shared = {tier: costs.seconds(tier, prompt_tokens, new_tokens, places, shared=True) for tier in Tier}
        shared = {tier: of_shared[tier] / seconds[Tier.DENSE] for tier in Tier}
        plans = [plan(each, shares, work, shared, Worker(places, may_wait, spare)) for each in loads]
        said = _assumptions(costs, work, shared, busy, gpus_per_worker, measured=dense_seconds is None)
        if as_json:
            print_json({"assumptions": said, "rows": [_json(each, gpus_per_worker) for each in plans]})
            return
        _print(plans, gpus_per_worker)
        of_all = f"{places} requests a worker, {may_wait:.0%} of a pool's may wait, {spare} of its workers may be away"
        for line in (f"{prompt_tokens} prompt tokens, {new_tokens} new ones, {mix}; {of_all}", *said):
            out.print(line, soft_wrap=True)


def _one(option: str, found: float, *others: object) -> list[float]:
    if any(other is not None for other in others):
        raise InvalidRequestError.of(option, "give one of --requests-per-second, --tokens-per-second and --load")
    if found > _MOST:
        raise InvalidRequestError.of(option, f"keeps {found:.0f} dense workers busy; {_MOST:.0f} at most are reckoned")
    return [found]


def _loads(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError.of("--load", f"must be numbers separated by commas, not {text!r}") from error
    if not all(0 < each <= _MOST for each in found):
        raise InvalidRequestError.of("--load", f"must be more than 0, and {_MOST:.0f} at most")
    return found


def _mix(text: str) -> dict[Tier, float]:
    """Shares by tier of `dense=50,moderate=25,aggressive=25`."""
    found: dict[Tier, float] = {}
    for part in text.split(","):
        word, _, number = part.strip().partition("=")
        tier = next((tier for tier in Tier if tier.word == word), None)
        if tier is None or tier in found:
            words = ", ".join(tier.word for tier in Tier)
            raise InvalidRequestError.of("--mix", f"must name each of {words} at most once, not {word!r}")
        try:
            found[tier] = float(number)
        except ValueError as error:
            raise InvalidRequestError.of("--mix", f"{word}: must be a percentage, not {number!r}") from error
    if not all(share >= 0 for share in found.values()) or abs(sum(found.values()) - _HUNDRED) > 1e-6:
        raise InvalidRequestError.of("--mix", f"must add up to 100 percent, not {sum(found.values()):g}")
    return {tier: share / _HUNDRED for tier, share in found.items()}


def _assumptions(
    costs: Costs, work: Mapping[Tier, float], shared: Mapping[Tier, float], busy: float, gpus: int, *, measured: bool
) -> list[str]:
    sparse = " and ".join(f"{work[tier]:.3f} at {tier.word}" for tier in Tier if tier is not Tier.DENSE)
    beside = ", ".join(f"{shared[tier]:.3f} at {tier.word}" for tier in Tier)
    source = "as you say"
    if measured:
        source = (
            "measured on one GPU" if gpus == 1 else f"measured on one GPU, and {gpus} taken to be {gpus} times as fast"
        )
    return [
        f"a dense request keeps a worker busy for {busy:.3f} s, {source}; of that work it is {sparse}",
        f"a worker of every tier does of that work {beside}"
        + ("" if costs.shared != costs.tiers else ", not measured"),
        f"measured: {costs.model}, {costs.device}; a prompt read alone, and its part of a full worker's decode steps",
        "a request that finds all places taken waits (Erlang C), and no pool takes what another has no room for",
        "not reckoned: prefixes that are cached, room in the KV cache, lengths and arrivals burstier than Poisson's",
    ]


def _print(plans: list[Plan], gpus: int) -> None:
    table = Table("load", "all dense", "a pool a tier", "shared", "shared against dense", box=None)
    for each in plans:
        pools = " + ".join(str(workers) for workers in each.pools.values())
        table.add_row(
            f"{each.load:.4g}",
            _words(each.dense, gpus),
            f"{_words(sum(each.pools.values()), gpus)} = {pools}",
            _words(each.shared, gpus),
            f"{each.shared / each.dense - 1:+.0%} GPUs",
        )
    out.print(table)


def _words(workers: int, gpus: int) -> str:
    return f"{workers * gpus} GPUs, {workers} workers" if gpus > 1 else f"{workers} GPUs"


def _json(each: Plan, gpus: int) -> dict[str, object]:
    pools = {tier.word: workers for tier, workers in each.pools.items()}
    workers = {"dense": each.dense, "pools": pools, "shared": each.shared}
    total = {"dense": each.dense * gpus, "pools": sum(pools.values()) * gpus, "shared": each.shared * gpus}
    return {"load": each.load, "workers": workers, "gpus": total}
