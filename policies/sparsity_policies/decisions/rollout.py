"""Rollouts: which requests a step lets through, and how an operator or a guard moves between steps.

The split hashes the sticky key with the domain, so that every replica puts a session on the same side, restarts change
nothing, a larger percentage only adds to a smaller one, and two domains split independently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

from sparsity_rpc.errors import InvalidRequestError

from sparsity_policies.model import Decision, Policy, Reason, Rollout, Signals, StickyBy

_BUCKETS = 10_000
# Of six bytes each at most they fit into the room that documents leave.
_REASON_CHARACTERS = 600
ROLLED_OUT, HELD_BACK = "rolled_out", "held_back"


class Action(IntEnum):
    """What to do with a rollout. Values equal `sparsity.v1.RolloutAction`."""

    START = 1
    PROMOTE = 2
    PAUSE = 3
    ABORT = 4
    RESUME = 5


def sticky_key(rollout: Rollout, signals: Signals) -> str:
    """What keeps its side; empty when the request does not carry it."""
    keys = {
        StickyBy.SESSION: signals.session,
        StickyBy.TENANT: signals.tenant,
        StickyBy.REQUEST: signals.request_key,
    }
    return keys[rollout.sticky_by]


def bucket(domain: str, key: str) -> float:
    """The place of ``key`` in [0, 100), uniform over keys and fixed for ever."""
    digest = hashlib.blake2b(f"{domain}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _BUCKETS * 100 / _BUCKETS


def lets_through(policy: Policy, rollout: Rollout, signals: Signals) -> bool:
    """Whether the present step lets a request through; one without the sticky key only at 100 percent."""
    if rollout.percent >= 100:
        return True
    key = sticky_key(rollout, signals)
    return bool(key) and bucket(policy.domain, key) < rollout.percent


def arm(policy: Policy | None, decision: Decision) -> str:
    """The side of the rollout that a decided request is on; empty when the rollout changes nothing for it."""
    if policy is None or policy.rollout is None:
        return ""
    if decision.reason is Reason.ROLLOUT_SPLIT:
        return HELD_BACK
    return ROLLED_OUT if decision.policy_tier > policy.rollout.held_back else ""


def move(policy: Policy, action: Action, fresh: Rollout | None = None) -> Policy:
    """The policy after an operator's ``action``; ``fresh`` is the rollout that START begins, else the policy's own.

    Raises:
        InvalidRequestError: when the rollout is not in a state for it; the message names what is.
    """
    if action is not Action.START and fresh is not None:
        raise InvalidRequestError.of("rollout", f"is only taken by start, not by {action.name.lower()}")
    rollout = fresh or policy.rollout
    if rollout is None:
        problem = f"policy {policy.domain} has none; start one with steps, such as 5, 25, 100"
        raise InvalidRequestError.of("rollout", problem)
    return replace(policy, rollout=_MOVES[action](policy.domain, rollout))


def halt(policy: Policy, reason: str) -> Policy:
    """The policy with its rollout at zero percent, for a guard."""
    assert policy.rollout is not None
    short = reason[:_REASON_CHARACTERS]
    return replace(policy, rollout=replace(policy.rollout, halted=True, paused=False, halt_reason=short))


def _start(domain: str, rollout: Rollout) -> Rollout:
    return replace(rollout, step=0, paused=False, halted=False, halt_reason="")


def _promote(domain: str, rollout: Rollout) -> Rollout:
    if rollout.state != "active":
        remedy = {"complete": "nothing is left to promote", "paused": "resume it first", "halted": "resume it first"}
        raise _wrong(domain, rollout, "promoted", remedy[rollout.state])
    return replace(rollout, step=rollout.step + 1)


def _pause(domain: str, rollout: Rollout) -> Rollout:
    if rollout.state != "active":
        raise _wrong(domain, rollout, "paused", "only an active one can be")
    return replace(rollout, paused=True)


def _resume(domain: str, rollout: Rollout) -> Rollout:
    if rollout.state not in ("paused", "halted"):
        raise _wrong(domain, rollout, "resumed", "only a paused or halted one can be")
    return replace(rollout, paused=False, halted=False, halt_reason="")


def _abort(domain: str, rollout: Rollout) -> Rollout:
    return replace(rollout, halted=True, paused=False, halt_reason="aborted by an operator")


def _wrong(domain: str, rollout: Rollout, verb: str, remedy: str) -> InvalidRequestError:
    problem = f"of {domain} is {rollout.state} at {rollout.percent} percent and cannot be {verb}: {remedy}"
    return InvalidRequestError.of("rollout", problem)


_MOVES: dict[Action, Callable[[str, Rollout], Rollout]] = {
    Action.START: _start,
    Action.PROMOTE: _promote,
    Action.PAUSE: _pause,
    Action.ABORT: _abort,
    Action.RESUME: _resume,
}
