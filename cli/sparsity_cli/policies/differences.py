"""Differences between documents, as people read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Policy

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def difference(before: Policy | None, after: Policy | None, from_name: str, to_name: str) -> list[str]:
    """The lines of a unified diff; none when both say the same."""
    old, new = (dump_yaml(policy).splitlines() if policy else [] for policy in (before, after))
    return list(difflib.unified_diff(old, new, from_name, to_name, lineterm=""))


def three_way(base: Policy, theirs: Policy, yours: Policy) -> list[str]:
    """What they changed and what you changed, against what both began with."""
    return [
        *difference(base, theirs, "as you read it", "in the store now (theirs)"),
        *difference(base, yours, "as you read it", "your edit (yours)"),
    ]


def show(console: Console, lines: list[str]) -> None:
    """Prints a diff, in colour where the terminal has any."""
    for line in lines:
        console.print(Text(line, style=_style(line)), soft_wrap=True)


def _style(line: str) -> str:
    return "bold" if line.startswith(("+++", "---")) else _STYLES.get(line[:1], "")


def as_comments(lines: list[str]) -> Iterator[str]:
    """Lines as YAML comments."""
    for line in lines:
        yield f"# {line}".rstrip()
