"""The command tree."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import typer
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving import telemetry

from sparsity_cli import policies, quality, risk, savings, up
from sparsity_cli.capacity import command as capacity
from sparsity_cli.fleet import check, status, worker
from sparsity_cli.requests import demo, explain, generate, outcome, trace

app = typer.Typer(
    name="sparsity",
    help="Routes each LLM request to the attention it deserves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("status")(status.status)
app.command("check")(check.check)
app.command("generate")(generate.generate)
app.command("explain")(explain.explain)
app.command("demo")(demo.demo)
app.command("outcome")(outcome.outcome)
app.command("capacity")(capacity.capacity)
app.command("savings")(savings.savings)
app.command("trace")(trace.trace)
app.command("calibrate", context_settings=quality.FORWARDED)(quality.calibrate)
app.add_typer(policies.app, name="policy")
if find_spec("sparsity_bench"):  # images leave benchmarks out
    app.add_typer(import_module("sparsity_bench.commands").app, name="bench")
app.add_typer(risk.app, name="risk")
app.add_typer(worker.app, name="worker")


def main() -> None:
    """Entry point of the console script."""
    try:
        telemetry.configure("sparsity-cli")
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
    try:
        app()
    finally:
        telemetry.shutdown()
