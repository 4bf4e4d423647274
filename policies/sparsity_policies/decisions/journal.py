"""Entries of the decision log: what was known of a request, what was decided, and how it went. Never its text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sparsity_policies.model import Reason, Signals, Tier


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision.

    Attributes:
        time: when it was made, seconds since the epoch.
        decision_id: the join key of outcomes.
        signals: what it was made from.
        policy: the policy that decided.
        policy_revision: of the store.
        policy_tier: the tier that policy gave.
        reason: why.
        matched_rule: the rule or band.
        served_tier: the tier that answered; None when none did.
        prefill_density: attended over causal pairs of the prompt, as the worker reports; 0 when it did not.
        decode_density: the same for generated tokens.
        coverage: estimated share of softmax mass kept; 0 when it was not reported.
        new_tokens: tokens generated.
        arm: the side of the domain's rollout: `rolled_out`, `held_back`, or empty for a request it does not touch.
    """

    time: float
    decision_id: str
    signals: Signals
    policy: str
    policy_revision: int
    policy_tier: Tier
    reason: Reason
    matched_rule: str = ""
    served_tier: Tier | None = None
    prefill_density: float = 0.0
    decode_density: float = 0.0
    coverage: float = 0.0
    new_tokens: int = 0
    arm: str = ""

    def to_json(self) -> str:
        """One line; :meth:`from_json` reads it."""
        signals = self.signals
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "signals"}
        plain["signals"] = {name: getattr(signals, name) for name in signals.__slots__} | {
            "flags": sorted(signals.flags),
            "labels": dict(signals.labels),
        }
        return json.dumps(plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Reads an entry.

        Raises:
            ValueError: when it is not one.
        """
        try:
            plain: dict[str, Any] = json.loads(text)
            known: dict[str, Any] = plain.pop("signals")
            signals = Signals(
                **known
                | {
                    "flags": frozenset(known["flags"]),
                    "labels": tuple(sorted(known["labels"].items())),
                    "max_tier": Tier(known["max_tier"]) if known["max_tier"] else None,
                    "session_tier": Tier(known["session_tier"]) if known.get("session_tier") else None,
                    "also": tuple(known.get("also", ())),
                }
            )
            served = plain["served_tier"]
            plain |= {
                "policy_tier": Tier(plain["policy_tier"]),
                "reason": Reason(plain["reason"]),
                "served_tier": Tier(served) if served else None,
            }
            return cls(signals=signals, **plain)
        except (TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"is no decision log entry: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good one answer was, by the caller's own measure.

    Attributes:
        decision_id: the decision it is of.
        domain: the domain of that decision.
        tier: the tier that answered.
        arm: the side of the domain's rollout, as in :class:`Entry`.
        metric: the caller's measure.
        score: in [0, 1].
        labels: free.
    """

    decision_id: str
    domain: str
    tier: Tier
    arm: str
    metric: str
    score: float
    labels: tuple[tuple[str, str], ...] = ()


def is_sampled(decision_id: str, rate: float) -> bool:
    """Whether a decision belongs to the sampled share ``rate``; every replica agrees."""
    digest = hashlib.blake2b(decision_id.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < rate * 2**32
