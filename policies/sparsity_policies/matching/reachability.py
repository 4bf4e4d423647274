"""Rules and bands that no request can reach, found without a solver: what is reported is certain, not all is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sparsity_rpc.errors import Violation

from sparsity_policies.matching.conditions import Condition, split
from sparsity_policies.model import Policy

_LENGTH = re.compile(r"tokens\s*(<=|>=|<|>)\s*(\d+)")
_UNBOUNDED = 2**63


class _Conjunction(NamedTuple):
    """What a conjunction asks: prompt tokens in [low, high), and every one of ``others``."""

    low: int
    high: int
    others: frozenset[str]

    @classmethod
    def of(cls, source: str) -> _Conjunction:
        low, high, others = 0, _UNBOUNDED, set()
        for part in split(source, "&&"):
            if found := _LENGTH.fullmatch(part):
                operator, bound = found[1], int(found[2])
                if operator in (">", ">="):
                    low = max(low, bound + (operator == ">"))
                else:
                    high = min(high, bound + (operator == "<="))
            else:
                others.add(re.sub(r"\s+", " ", part))
        return cls(low, high, frozenset(others))

    def implies(self, other: _Conjunction) -> bool:
        return other.low <= self.low and self.high <= other.high and other.others <= self.others


def unreachable(policy: Policy) -> Iterator[Violation]:
    """Rules that an earlier one always takes or that never hold, and bands that rules never leave anything to."""
    earlier: list[tuple[str, list[_Conjunction]]] = []
    for number, rule in enumerate(policy.rules):
        path = f"rules[{number}].when"
        try:
            constant = Condition(rule.when).constant
        except ValueError:
            continue
        cases = [_Conjunction.of(case) for case in split(rule.when, "||")]
        always = next((name for name, known in earlier if all(any(c.implies(k) for k in known) for c in cases)), None)
        if constant is False or all(case.low >= case.high for case in cases):
            yield Violation(path, "can never hold; remove the rule or mend its condition")
        elif always is not None:
            yield Violation(path, f"is never reached: rule {always!r} before it takes every such request; reorder them")
        if constant:
            cases = [_Conjunction(0, _UNBOUNDED, frozenset())]
            if number == len(policy.rules) - 1 and len(policy.bands) > 1:
                problem = f"takes every request, so no band is ever reached: remove rule {rule.name!r} or the bands"
                yield Violation(path, problem)
        earlier.append((rule.name, cases))
