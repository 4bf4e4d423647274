"""Writes the page of options; with --check, fails when it is stale."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from sparsity_cli.main import app
from sparsity_router.config import PREFIX as ROUTER
from sparsity_router.config import RouterConfig
from sparsity_serving.options.declaration import Leaf, leaves
from sparsity_serving.options.settings import variable
from sparsity_worker.config import PREFIX as WORKER
from sparsity_worker.config import WorkerConfig
from sparsity_worker.tune.options import TuneConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "options.md"
INTRODUCTION = """\
# What options are there?

Made from the code by `tools/options.py`; an option is stated in `RouterConfig` or `WorkerConfig` and nowhere else
(`sparsity worker tune` takes a worker's own, and states its one profile).

Each may be given on the command line (`--queue-seconds 20`), in the environment
(`SPARSITY_ROUTER_QUEUE_SECONDS=20`), or in a YAML file that `--config` names (`queue-seconds: 20`). The command line
counts first, then the environment, then the file. An option that is on or off is switched off by `--no-` and its name.
In the chart, `router.options` and `workers.POOL.options` take them by name. A value that cannot be used ends the
process with status 2 and a line that names the option, what it takes, and what was given.
"""
UP = "The whole service on one machine has defaults of its own, and is told by its command line alone."
PROCESSES = (
    (RouterConfig, ROUTER, "python -m sparsity_router"),
    (WorkerConfig, WORKER, "python -m sparsity_worker"),
    (TuneConfig, WORKER, "sparsity worker tune"),
)


def page() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION]
    for settings, prefix, program in PROCESSES:
        lines += [f"## `{program}`", "", "| option | default | takes | what it is |", "|---|---|---|---|"]
        lines += [_row(leaf, prefix) for leaf in leaves(settings) if not leaf.said.inner]
        lines.append("")
    return "\n".join([*lines, *_up(), ""])


def _up() -> Iterator[str]:
    """The options of `sparsity up`, which starts the others' processes."""
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    yield from ("## `sparsity up`", "", UP, "", "| option | default | what it is |", "|---|---|---|")
    for each in commands["up"].params:
        flags = "`, `".join([*each.opts, *each.secondary_opts])
        variable = f"<br>`{each.envvar}`" if each.envvar else ""
        yield f"| `{flags}`{variable} | {_shown(each.default)} | {each.help} |"


def _row(leaf: Leaf, prefix: str) -> str:
    cells = (f"`{leaf.flag}`<br>`{variable(leaf, prefix)}`", default(leaf), _takes(leaf), leaf.said.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def default(leaf: Leaf) -> str:
    """What stands in the column of defaults; empty without one."""
    if leaf.required:
        return "must be given"
    if leaf.said.shown:
        return leaf.said.shown
    return _shown(leaf.default)


def _shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _takes(leaf: Leaf) -> str:
    names = {bool: "", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    if leaf.said.choices:
        return leaf.said.bounds()
    kind = "" if leaf.said.read else names[leaf.kind]
    return ", ".join(filter(None, (kind, leaf.said.bounds())))


def main() -> int:
    """Writes the page; with --check, 1 when it is stale, and nothing is written."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what the code says: run `make options`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
