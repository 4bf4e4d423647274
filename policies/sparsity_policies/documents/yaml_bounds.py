"""Refuses YAML that is small and grows: aliases of aliases, and nesting without an end."""

from __future__ import annotations

from typing import Any

import yaml

# Nodes once every alias is written out, and how deep they may lie in each other.
MAX_NODES, MAX_NESTING = 500_000, 64


def check_growth(text: str, loader: Any) -> None:
    """Goes through a document's events, without building it.

    Raises:
        ValueError: when it grows past a bound, or holds itself.
        yaml.YAMLError: when it is not YAML.
    """
    anchors: dict[str, int | None] = {}
    # Nodes within each open list or mapping, the document's own first, and the anchor that it bears.
    open_: list[tuple[int, str | None]] = [(0, None)]
    for event in yaml.parse(text, Loader=loader):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            if event.anchor:
                anchors[event.anchor] = None
            open_.append((1, event.anchor))
            if len(open_) > MAX_NESTING:
                raise ValueError(f"nests deeper than {MAX_NESTING}")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_.pop()
            if anchor:
                anchors[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor:
                anchors[event.anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            known = anchors.get(event.anchor or "", 0)
            if known is None:
                raise ValueError(f"*{event.anchor} stands in itself")
            size = known
        within, anchor = open_[-1]
        open_[-1] = within + size, anchor
        if within + size > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES} values once its aliases are written out")
