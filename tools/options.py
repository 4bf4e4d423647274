"""Writes the page of options, and the options that the chart takes; with --check, fails when they are stale."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsity.options.declaration import Leaf, leaves
from sparsity.options.settings import variable
from sparsity_router.config import PREFIX as ROUTER
from sparsity_router.config import RouterConfig
from sparsity_worker.config import PREFIX as WORKER
from sparsity_worker.config import WorkerConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "options.md"
SCHEMA = ROOT / "deploy" / "helm" / "sparsity-router" / "values.schema.json"
INTRODUCTION = """\
# What options are there?

Made from the code by `tools/options.py`; an option is stated in `RouterConfig` or `WorkerConfig` and nowhere else.

Each may be given on the command line (`--queue-seconds 20`), in the environment
(`SPARSITY_ROUTER_QUEUE_SECONDS=20`), or in a YAML file that `--config` names (`queue-seconds: 20`). The command line
counts first, then the environment, then the file. An option that is on or off is switched off by `--no-` and its name.
In the chart, `router.options` and `workers.TIER.options` take them by name. A value that cannot be used ends the
process with status 2 and a line that names the option, what it takes, and what was given.
"""
PROCESSES = ((RouterConfig, ROUTER, "python -m sparsity_router"), (WorkerConfig, WORKER, "python -m sparsity_worker"))
_TYPES = {bool: "boolean", int: "integer", float: "number"}
_BOUNDS = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "below": "exclusiveMaximum"}


def page() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION]
    for settings, prefix, program in PROCESSES:
        lines += [f"## `{program}`", "", "| option | default | takes | what it is |", "|---|---|---|---|"]
        lines += [_row(leaf, prefix) for leaf in leaves(settings) if not leaf.said.inner]
        lines.append("")
    return "\n".join(lines)


def _row(leaf: Leaf, prefix: str) -> str:
    cells = (f"`{leaf.flag}`<br>`{variable(leaf, prefix)}`", _default(leaf), _takes(leaf), leaf.said.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(leaf: Leaf) -> str:
    if leaf.required:
        return "must be given"
    if leaf.said.shown:
        return leaf.said.shown
    if leaf.default is None:
        return ""
    if isinstance(leaf.default, bool):
        return "on" if leaf.default else "off"
    return f"`{leaf.default:g}`" if isinstance(leaf.default, float) else f"`{leaf.default}`"


def _takes(leaf: Leaf) -> str:
    names = {bool: "", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    if leaf.said.choices:
        return leaf.said.bounds()
    kind = "" if leaf.said.read else names[leaf.kind]
    return ", ".join(filter(None, (kind, leaf.said.bounds())))


def schema_of(settings: type) -> dict[str, Any]:
    """What a chart's `options` of such a process may hold."""
    properties = {leaf.said.name: dict(_schema(leaf)) for leaf in leaves(settings) if not leaf.said.inner}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(leaf: Leaf) -> Iterator[tuple[str, Any]]:
    yield "description", leaf.said.help
    if leaf.said.choices:
        yield "enum", list(leaf.said.choices)
    else:
        yield "type", ["string", "number"] if leaf.said.read else _TYPES.get(leaf.kind, "string")
    for name, keyword in _BOUNDS.items():
        if (bound := getattr(leaf.said, name)) is not None:
            yield keyword, bound


def chart() -> str:
    """The chart's schema with its two sets of options made anew."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schema["$defs"] |= {"routerOptions": schema_of(RouterConfig), "workerOptions": schema_of(WorkerConfig)}
    return json.dumps(schema, indent=1) + "\n"


def main() -> int:
    """Writes what is stale, or tells it; 0 unless --check finds any."""
    stale = [(path, text) for path, text in ((PAGE, page()), (SCHEMA, chart())) if not _is(path, text)]
    for path, text in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is not what the code says: run `make options`", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv[1:] else 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
