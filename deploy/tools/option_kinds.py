"""What options of our programs take, in the words of JSON Schema: their bounds are stated with the options."""

from __future__ import annotations

from schema_kinds import YES_OR_NO, Schema, of, one_of
from sparsity_serving.options.declaration import Leaf, leaves

# An option's bounds in the words of JSON Schema.
BOUNDS = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "below": "exclusiveMaximum"}


def options(settings: type) -> Schema:
    """Every option of a program by its name without dashes, and what it takes."""
    return of(**{leaf.said.name: _taken(leaf) for leaf in leaves(settings) if not leaf.said.inner})


def _taken(leaf: Leaf) -> Schema:
    if leaf.said.choices:
        return one_of(*leaf.said.choices)
    kinds: dict[type, Schema] = {bool: YES_OR_NO, int: {"type": "integer"}, float: {"type": "number"}}
    text: Schema = {"type": ["string", "number"]}
    taken = text if leaf.said.read else kinds.get(leaf.kind, text)
    found = {keyword: getattr(leaf.said, name) for name, keyword in BOUNDS.items()}
    return {**taken, **{keyword: bound for keyword, bound in found.items() if bound is not None}}


def taken(settings: type, name: str) -> Schema:
    """What one option of a program takes."""
    (leaf,) = (leaf for leaf in leaves(settings) if leaf.said.name == name)
    return _taken(leaf)
