"""A look around the service that has just started: each command is shown, then run, so that it can be repeated."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsity_router.prompts.corpus import excerpt

_CHARACTERS = 6000
_OVERRIDE = "tour"


def _steps(prompt: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is shown, and the command that shows it."""
    explain = ("explain", "--file", str(prompt), "--domain", "rag")
    yield "Requests of every kind, and the tier that policy gives each:", ("demo", "--no-kill")
    yield "Why one gets its tier, and what would give it another:", explain
    kill = ("policy", "kill", "--domain", "rag", "--id", _OVERRIDE, "--for", "1m", "--reason", "a look around")
    yield "A kill switch, which acts on the next request:", kill
    yield "The same request again:", explain
    yield "And back:", ("policy", "unkill", _OVERRIDE)


def tour(router: str, state: Path, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
    """Runs the commands one after the other against ``router``, until one fails or ``stopped`` says so.

    Args:
        router: its address.
        state: the service's state folder, which gets the prompt.
        say: gets a line before each command.
        stopped: whether the service is to end.
    """
    prompt = state / "manual.txt"
    prompt.write_text(excerpt(_CHARACTERS), encoding="utf-8")
    program = str(Path(sys.executable).parent / "sparsity")
    environment = os.environ | {"SPARSITY_ROUTER": router, "SPARSITY_STATE": str(state)}
    for what, command in _steps(prompt):
        if stopped():
            return
        say(what)
        say(f"$ {shlex.join((program, *command))}")
        if subprocess.run([program, *command], env=environment, check=False).returncode:
            return
