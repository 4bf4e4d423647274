"""Memory, start-up time and greedy parity of the embedded service."""

from __future__ import annotations

import json
import subprocess
import sys

from sparsity_cli.fleet.status import memory_bytes
from sparsity_router.embedded.state import Running
from sparsity_rpc.errors import EngineError
from sparsity_serving.benchmark import Row, judged

# One worker of every tier: five GiB, and a minute. With a worker a tier: what three engines take.
SHARED_MEMORY_BYTES, POOLS_MEMORY_BYTES = 5 * 2**30, 14e9
SHARED_READY_SECONDS, POOLS_READY_SECONDS = 60.0, 120.0
PARITY_PROMPTS = 20


def memory_row(running: Running) -> Row:
    """Resident memory of the whole service."""
    used = float(memory_bytes(running))
    row = Row("resident memory (PSS)", running.shape, used / 1e9, "GB")
    goal = SHARED_MEMORY_BYTES if running.is_shared else POOLS_MEMORY_BYTES
    return judged(row, f"< {goal / 1e9:.3g} GB", met=used < goal)


def ready_row(running: Running) -> Row:
    """From the start of `sparsity up` to ready; meaningful when the model was there already."""
    row = Row("start to ready, warm cache", running.shape, running.ready_seconds, "s")
    goal = SHARED_READY_SECONDS if running.is_shared else POOLS_READY_SECONDS
    return judged(row, f"< {goal:g} s", met=running.ready_seconds < goal)


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
    agree = equal + ties
    row = Row("greedy output equals transformers up to ties, dense tier", shape, float(agree), "prompts")
    return judged(row, "20 of 20", met=agree == len(found) == PARITY_PROMPTS)
