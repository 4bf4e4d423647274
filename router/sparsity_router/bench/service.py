"""Memory, start-up time and greedy parity of the embedded service."""

from __future__ import annotations

import json
import subprocess
import sys

from sparsity.errors import EngineError

from sparsity_router.bench.results import Row, judged
from sparsity_router.cli.status import memory_bytes
from sparsity_router.embedded.state import Running

MEMORY_GOAL_BYTES = 14e9
READY_GOAL_SECONDS = 120.0
PARITY_PROMPTS = 20


def memory_row(running: Running) -> Row:
    """Resident memory of the whole service."""
    used = float(memory_bytes(running))
    goal = judged("< 14 GB", used, lambda value: value < MEMORY_GOAL_BYTES)
    return Row("resident memory (PSS)", "Valkey, router, three workers", used / 1e9, "GB", **goal)  # type: ignore[arg-type]


def ready_row(running: Running) -> Row:
    """From the start of `sparsity up` to ready; meaningful when the model was there already."""
    ready = running.ready_seconds
    goal = judged("< 120 s", ready, lambda value: value < READY_GOAL_SECONDS)
    return Row("start to ready, warm cache", "Valkey, router, three workers", ready, "s", **goal)  # type: ignore[arg-type]


def parity_row(running: Running, new_tokens: int) -> Row:
    """Greedy tokens of the dense tier beside those of transformers.

    Raises:
        EngineError: when the comparison could not run.
    """
    command = [sys.executable, "-m", "sparsity_worker.parity", "--model", running.model_path]
    command += ["--target", running.workers["dense"].address, "--new-tokens", str(new_tokens)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(result.stdout)
    except ValueError as error:
        raise EngineError(f"the parity check failed: {result.stderr.strip()[-500:]}") from error
    equal = sum(one["equal"] for one in found)
    ties = sum(one["tie"] for one in found)
    shape = f"{len(found)} prompts, {new_tokens} tokens: {equal} equal, {ties} part at a tie"
    agree = float(equal + ties)
    goal = judged("20 of 20", agree, lambda value: value == PARITY_PROMPTS == len(found))
    return Row("greedy output equals transformers up to ties, dense tier", shape, agree, "prompts", **goal)  # type: ignore[arg-type]
