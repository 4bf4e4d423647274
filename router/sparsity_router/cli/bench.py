"""`sparsity bench`: benchmarks of the running embedded service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from sparsity.errors import InvalidRequestError

from sparsity_router.bench import results, service
from sparsity_router.bench.tiers import measure
from sparsity_router.cli.console import AsJson, State, err, print_json, reported
from sparsity_router.embedded.folders import state_folder
from sparsity_router.embedded.state import read_running

app = typer.Typer(help="Benchmarks of the running embedded service.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Benchmarks of the running embedded service."""


@app.command("tiers")
def tiers(
    tokens: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "1024,2048,4096,7500",
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each length and tier.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder to write tiers.json and tiers.md to.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Time to first token of each tier against dense, memory, start-up and greedy parity."""
    with reported():
        running = read_running(state or state_folder())
        lengths = _lengths(tokens)
        rows = measure(running, lengths, repeats, new_tokens, _say)
        _say("greedy parity with transformers ...")
        rows += [service.memory_row(running), service.ready_row(running), service.parity_row(running, 32)]
        command = " ".join(["sparsity", *sys.argv[1:]])
        head = results.header(
            command, {"model": Path(running.model_path).name, "load average": f"{os.getloadavg()[0]:.1f}"}
        )
        if out is not None:
            results.write(out, "tiers", head, rows)
        document = {"header": head, "rows": [{name: getattr(row, name) for name in row.__slots__} for row in rows]}
        if as_json:
            print_json(document)
        else:
            typer.echo(results.markdown("tiers", document))


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
