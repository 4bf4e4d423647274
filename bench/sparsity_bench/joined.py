"""One result file of several runs on the same device, such as one for each part where a call's time is bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sparsity_serving.benchmark import Row, write

# What of a header must be the same in all runs (`kernels` has torch and Triton), and what is told of each.
_SAME = ("device", "kernels", "command", "model", "ranks")
_TOLD = ("date", "seconds", "checks", "not run", "note", "versions", "not on this machine")


def join(name: str, files: Sequence[Path], out: Path) -> list[Row]:
    """Writes ``NAME.json`` and ``NAME.md`` from the result files of runs; of a row in several the last counts.

    A row stands beside the baseline of its own run.

    Args:
        name: of the benchmark, as in `make bench-NAME`.
        files: result files, in the order of their runs.
        out: folder to write to.

    Returns:
        The rows.

    Raises:
        ValueError: when a file is no result file, or of another device, model, torch or Triton than the first.
    """
    found: dict[tuple[str, str], Row] = {}
    runs: dict[str, str] = {}
    head: dict[str, object] = {}
    for file in files:
        try:
            document = json.loads(file.read_text())
            own, rows = document["header"], [Row(**row) for row in document["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: is no result file of make bench-{name}: {error}") from error
        for key in _SAME:
            if key in own and own[key] != head.get(key, own[key]):
                raise ValueError(f"{file}: {key} is {own[key]}, not {head[key]} as in {files[0]}")
        earlier = {key: told for key, told in own.items() if key.startswith("run ")}
        head = head or {key: value for key, value in own.items() if key not in (*_TOLD, *earlier)}
        # A file that was joined before has several.
        for told in earlier.values() or ["; ".join(f"{key}: {_listed(own[key])}" for key in _TOLD if key in own)]:
            runs[f"run {len(runs) + 1}"] = told
        head["date"] = own["date"]
        found |= {(row.name, row.shape): row for row in rows}
    write(out, name, head | runs, list(found.values()))
    return list(found.values())


def _listed(told: object) -> str:
    if not isinstance(told, dict):
        return str(told)
    # Of what is not there the name is enough.
    return ", ".join(name if "Error" in str(value) else f"{name} {value}" for name, value in told.items())
