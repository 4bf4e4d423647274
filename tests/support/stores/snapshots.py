"""Snapshots of the shipped policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.matching.expressions import compile_expressions
from sparsity_policies.model import Override, Policy, StoredPolicy


def stored(policy: Policy, revision: int = 1) -> StoredPolicy:
    return StoredPolicy(policy, f"etag-{revision}", revision, 0.0, "test", "test")


@lru_cache(32)
def _database(expressions: tuple[str, ...]) -> Any:
    """Compiled once for all tests of a process: the same expressions, most of them shipped, come again and again."""
    return compile_expressions(expressions)


def compiled(expressions: Sequence[str]) -> Any:
    """As :func:`compile_expressions`, which it asks once for each list."""
    return _database(tuple(expressions))


@cache
def _shipped() -> tuple[Policy, ...]:
    return tuple(shipped_policies("small-context"))


def snapshot(
    policies: Iterable[Policy] | None = None, overrides: Iterable[Override] = (), ttl: float = 300.0
) -> Snapshot:
    chosen = _shipped() if policies is None else policies
    return Snapshot.build(1, [stored(policy) for policy in chosen], overrides, ttl=ttl, compiled=compiled)
