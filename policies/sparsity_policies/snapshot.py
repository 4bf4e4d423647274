"""All policies and overrides at one revision, compiled and immutable: what a router decides from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsity_policies.conditions import Condition
from sparsity_policies.document import to_document
from sparsity_policies.model import Override, Policy, StoredPolicy
from sparsity_policies.scan import Scanner

DEFAULT_TTL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy with its conditions compiled, in the order of its rules."""

    stored: StoredPolicy
    conditions: tuple[Condition, ...]

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.stored.policy


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable state of the store.

    Attributes:
        revision: the store's revision.
        policies: by domain.
        overrides: by id; expiry is checked at decision time.
        scanner: over the detection of all policies.
        policies_hash: hash of the policies alone.
        rejected: domains whose documents could not be read, held at their last good version or absent.
        ttl: age past which everything goes dense, seconds.
    """

    revision: int
    policies: Mapping[str, Compiled]
    overrides: tuple[Override, ...]
    scanner: Scanner
    policies_hash: str
    rejected: tuple[str, ...] = ()
    ttl: float = DEFAULT_TTL_SECONDS

    @classmethod
    def build(
        cls,
        revision: int,
        policies: Iterable[StoredPolicy],
        overrides: Iterable[Override] = (),
        rejected: Iterable[str] = (),
        ttl: float = DEFAULT_TTL_SECONDS,
    ) -> Snapshot:
        """Compiles a snapshot.

        Raises:
            ValueError: when a condition or pattern does not compile; validated policies always do.
        """
        compiled = {
            stored.policy.domain: Compiled(stored, tuple(Condition(rule.when) for rule in stored.policy.rules))
            for stored in policies
        }
        content = {domain: to_document(item.policy) for domain, item in sorted(compiled.items())}
        scanner = Scanner(item.policy for item in compiled.values())
        empty = cls(revision, compiled, (), scanner, _hash(content), tuple(sorted(rejected)), ttl)
        return empty.with_overrides(overrides)

    def with_overrides(self, overrides: Iterable[Override]) -> Snapshot:
        """The same policies under other overrides; compiles nothing, so that a kill switch acts at once."""
        ordered = tuple(sorted(overrides, key=lambda override: override.id))
        return dataclasses.replace(self, overrides=ordered)

    @property
    def content_hash(self) -> str:
        """Equal on replicas that decide alike."""
        overrides = [[o.id, o.scope, o.target, o.max_tier, o.expire_time] for o in self.overrides]
        return _hash([self.policies_hash, overrides])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
