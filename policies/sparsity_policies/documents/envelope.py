"""What the store keeps of a policy or an override, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sparsity_rpc.errors import InvalidRequestError

from sparsity_policies.documents.document import Check, body_of, is_text, parse_policy, unchecked
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Override, Scope, StoredPolicy, Tier

UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    InvalidRequestError,
)
# Seconds since the epoch that a message can tell, of the years 1 to 9999; and the most that the store counts to.
_FIRST_SECOND, _LAST_SECOND, _MOST_REVISIONS = -62_135_596_800, 253_402_300_799, 2**63


def open_policy(envelope: str, domain: str, check: Check = check_policy) -> StoredPolicy:
    """Reads a stored policy; ``check`` finds the mistakes of one of the right shape.

    Raises:
        one of UNREADABLE: when it cannot be read.
    """
    outer = _fields(envelope)
    policy = parse_policy(json.loads(outer["body"]), check)
    if policy.domain != domain:
        raise ValueError(f"holds the policy of {policy.domain!r}")
    return StoredPolicy(
        policy,
        str(outer["etag"]),
        _revision(outer["revision"]),
        seconds_since(outer["time"]),
        str(outer["actor"]),
        str(outer["reason"]),
        bool(outer.get("deleted", False)),
    )


def readable(domain: str, envelopes: Iterable[str]) -> list[StoredPolicy]:
    """Those of a domain's policy that can be read; what they say is not checked."""
    found = []
    for envelope in envelopes:
        try:
            found.append(open_policy(envelope, domain, unchecked))
        except UNREADABLE:
            continue
    return found


def _fields(text: str) -> Any:
    """What a JSON object holds; ValueError where a text of it is none that could be sent."""
    found = json.loads(text)
    if not all(is_text(value) for value in found.values() if isinstance(value, str)):
        raise ValueError("has half a surrogate pair, which is no character")
    return found


def seconds_since(value: Any) -> float:
    """A time in seconds since the epoch, as a message can tell it.

    Raises:
        one of UNREADABLE: when it is none.
    """
    seconds = float(value)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise ValueError(f"{seconds} is no time in seconds since the epoch")
    return seconds


def _revision(value: Any) -> int:
    revision = int(value)
    if not 0 <= revision < _MOST_REVISIONS:
        raise ValueError("its revision is none that the store counts to")
    return revision


def seal_policy(stored: StoredPolicy) -> str:
    """What :func:`open_policy` reads; the store's script makes the same of a write."""
    return json.dumps(
        {
            "etag": stored.etag,
            "revision": stored.revision,
            "time": repr(stored.update_time),
            "actor": stored.actor,
            "reason": stored.reason,
            "body": body_of(stored.policy),
            "deleted": stored.deleted,
        }
    )


def seal_override(override: Override) -> str:
    """An override as the store keeps it, without its id."""
    return json.dumps(
        {
            "scope": override.scope.value,
            "target": override.target,
            "max_tier": override.max_tier.value,
            "expire_time": override.expire_time,
            "reason": override.reason,
            "actor": override.actor,
            "revision": override.revision,
        }
    )


def open_overrides(bodies: dict[str, str]) -> tuple[list[Override], dict[str, str]]:
    """Overrides by id, and what was wrong with those that could not be read."""
    found, rejected = [], {}
    for name, body in sorted(bodies.items()):
        try:
            found.append(_open_override(name, body))
        except UNREADABLE as error:
            # An override that cannot be read may have been a kill switch.
            found.append(Override(name, Scope.GLOBAL, reason="unreadable override, held as a global kill switch"))
            rejected[f"override {name}"] = f"{type(error).__name__}: {error}"
    return found, rejected


def _open_override(name: str, body: str) -> Override:
    fields = _fields(body)
    expires = fields["expire_time"]
    return Override(
        id=name,
        scope=Scope(fields["scope"]),
        target=str(fields["target"]),
        max_tier=Tier(fields["max_tier"]),
        expire_time=None if expires is None else seconds_since(expires),
        reason=str(fields["reason"]),
        actor=str(fields["actor"]),
        revision=_revision(fields.get("revision", 0)),
    )
