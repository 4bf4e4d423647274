"""`sparsity bench quality` and `sparsity calibrate`: run beside the router, which must not load torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import NoReturn

import typer
from sparsity_router.embedded.default_model import default_model
from sparsity_rpc.errors import ConfigurationError

from sparsity_cli.console import err, reported

_NEEDED = ("torch", "transformers", "matplotlib", "scipy")
# The other side has the options; what it is asked for here goes there as it is.
FORWARDED = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def bench_quality(context: typer.Context) -> None:
    """What profiles cost a model, by context length and task (`--help` has the options)."""
    _forward("bench", context.args)


def calibrate(context: typer.Context) -> None:
    """Learn a profile for a model from text (`--help` has the options)."""
    _forward("calibrate", context.args)


def _forward(command: str, options: list[str]) -> NoReturn:
    with reported():
        if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
            raise ConfigurationError(
                f"{', '.join(missing)}: not installed; run pip install 'sparsity-worker[quality]' and try again"
            )
        named = any(option.partition("=")[0] in ("--model", "--help") for option in options)
        if not named and command == "bench":
            options = ["--model", str(default_model(lambda line: err.print(f"[dim]{line}[/dim]"))), *options]
        raise typer.Exit(subprocess.run([sys.executable, "-m", "sparsity_quality", command, *options]).returncode)
