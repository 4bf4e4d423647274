"""`sparsity bench`: benchmarks."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from sparsity_cli.console import AsJson, State, err, print_json, reported
from sparsity_cli.quality import FORWARDED, bench_quality
from sparsity_router.embedded.default_model import default_model
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.profiles import profiles_by_tier
from sparsity_router.embedded.state import Process, read_running
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving import benchmark
from sparsity_serving.engines import SGLANG

from sparsity_bench.policies.run import Counts
from sparsity_bench.policies.run import measure as measure_policies
from sparsity_bench.risk.run import measure as measure_risk
from sparsity_bench.router.run import Plan
from sparsity_bench.router.run import measure as measure_router
from sparsity_bench.tiers import prefixes as shared_prefixes
from sparsity_bench.tiers import service
from sparsity_bench.tiers.apart import workers_apart
from sparsity_bench.tiers.run import measure

app = typer.Typer(help="Benchmarks.", no_args_is_help=True)
app.command("quality", context_settings=FORWARDED)(bench_quality)


@app.command("tiers")
def tiers(
    tokens: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "1024,2048,4096,7500",
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each length and tier.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 8,
    apart: Annotated[
        bool, typer.Option(help="Beside a worker of every tier, start one for each and measure them by turns.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder to write tiers.json and tiers.md to.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Of the running service: time to first token by tier, beside dense and a pool of it; memory, start-up, parity."""
    with reported():
        running = read_running(state or state_folder())
        if running.engine != SGLANG:
            raise ConfigurationError(f"the running service answers by {running.engine}: there is nothing to measure")
        lengths = _lengths(tokens)
        with ExitStack() as beside:
            others: dict[str, Process] = {}
            if apart and running.is_shared:
                profiles = profiles_by_tier((), other_model=Path(running.model_path) != default_model(_say))
                others = beside.enter_context(workers_apart(running, profiles, _say))
            rows = measure(running, others, lengths, repeats, new_tokens, _say)
        _say("greedy parity with transformers ...")
        rows += [service.memory_row(running), service.ready_row(running), service.parity_row(running, 32)]
        _publish("tiers", rows, _on(Path(running.model_path)), out, as_json)


@app.command("policies")
def policies(
    edits: Annotated[int, typer.Option(min=1, help="Edits by the command line.")] = 200,
    puts: Annotated[int, typer.Option(min=1, help="Edits by PutPolicy, with few and with many domains.")] = 200,
    kills: Annotated[int, typer.Option(min=2, help="Times that the kill switch is thrown.")] = 100,
    model: Annotated[Path | None, typer.Option(help="Model folder; the default model without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write policies.json and policies.md to.")] = None,
    as_json: AsJson = False,
) -> None:
    """From an edit or kill switch to its effect on three routers of its own; decision time, rollouts, many writers."""
    with reported():
        folder = model or default_model(_say)
        rows = asyncio.run(measure_policies(folder, Counts(edits=edits, puts=puts, kills=kills), _say))
        _publish("policies", rows, _on(folder), out, as_json)


@app.command("router")
def router(
    requests: Annotated[int, typer.Option(min=40, help="Requests of each kind.")] = 2000,
    soak: Annotated[int, typer.Option(min=1000, help="Requests of the soak.")] = 100_000,
    peers: Annotated[bool, typer.Option(help="Install other routers from their packages and measure them too.")] = True,
    model: Annotated[Path | None, typer.Option(help="Model folder; the default model without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write router.json and router.md to.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a router adds to a call, beside a bare relay and other routers; overload, cancels, edits, a soak."""
    with reported():
        folder = model or default_model(_say)
        plan = Plan(requests, soak) if peers else Plan(requests, soak, peers=())
        rows = asyncio.run(measure_router(folder, plan, _say))
        _publish("router", rows, _on(folder), out, as_json)


@app.command("risk")
def risk(
    out: Annotated[Path | None, typer.Option(help="Folder to write risk.json and risk.md to.")] = None,
    as_json: AsJson = False,
) -> None:
    """What detection misses and moves of held-out texts, beside literals and a list of keywords; time and memory."""
    with reported():
        _publish("risk", measure_risk(_say), _on(Path("model.npz")), out, as_json)


@app.command("prefixes")
def prefixes(
    requests: Annotated[int, typer.Option(min=100, help="Requests of the simulated load.")] = 20_000,
    out: Annotated[Path | None, typer.Option(help="Folder to write prefixes.json and prefixes.md to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Of a simulated load: prompt tokens in the prefix cache of their own tier, and those only in a denser one's."""
    with reported():
        rows = shared_prefixes.measure(requests, _say)
        _publish("prefixes", rows, {"requests": requests, **shared_prefixes.ASSUMPTIONS}, out, as_json)


def _on(model: Path) -> dict[str, object]:
    """What a header says of a measurement: of which model, and how busy the machine was."""
    return {"model": model.name, "load average": f"{os.getloadavg()[0]:.1f}"}


def _publish(name: str, rows: list[benchmark.Row], how: Mapping[str, object], out: Path | None, as_json: bool) -> None:
    """Writes the result file where that is asked for, and prints it."""
    head = benchmark.header(" ".join(["sparsity", *sys.argv[1:]]), how)
    if out is not None:
        benchmark.write(out, name, head, rows)
    document = {"header": head, "rows": [{name: getattr(row, name) for name in row.__slots__} for row in rows]}
    if as_json:
        print_json(document)
    else:
        typer.echo(benchmark.markdown(name, document))


def _say(line: str) -> None:
    err.print(f"[dim]{line}[/dim]")


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError.of("--tokens", f"must be whole numbers separated by commas, not {text!r}") from error
    if min(lengths) < 1:
        raise InvalidRequestError.of("--tokens", "must be at least 1")
    return lengths
