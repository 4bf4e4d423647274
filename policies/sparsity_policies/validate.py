"""What a policy of the right shape can still get wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from sparsity.errors import Violation

from sparsity_policies.conditions import SAMPLE, Condition, context
from sparsity_policies.model import Band, Policy, Risk, Tier
from sparsity_policies.scan import pattern_problem


def check_policy(policy: Policy) -> list[Violation]:
    """Every mistake, none when the policy is sound."""
    return [*_bands(policy), *_rules(policy), *_detection(policy), *_rollout(policy), *_fallback(policy)]


def _bands(policy: Policy) -> Iterator[Violation]:
    tasks: dict[str, list[tuple[int, Band]]] = defaultdict(list)
    for number, band in enumerate(policy.bands):
        tasks[band.task].append((number, band))
    if "" not in tasks:
        yield Violation("bands", "need one band with from_tokens: 0 and no task, for requests of any other task")
    for task, bands in tasks.items():
        of_task = f" of task {task!r}" if task else ""
        seen: dict[int, int] = {}
        for number, band in bands:
            if band.from_tokens in seen:
                other = seen[band.from_tokens]
                problem = f"overlaps bands[{other}]: both begin at {band.from_tokens}{of_task}; remove one or move it"
                yield Violation(f"bands[{number}].from_tokens", problem)
            seen.setdefault(band.from_tokens, number)
        starts = [band.from_tokens for _, band in bands]
        if min(starts) > 0:
            first = starts.index(min(starts))
            problem = f"prompts below {min(starts)} tokens{of_task} have no band; let the first band begin at 0"
            yield Violation(f"bands[{bands[first][0]}].from_tokens", problem)
        if starts != sorted(starts):
            at = next(n for n in range(1, len(starts)) if starts[n] < starts[n - 1])
            problem = f"bands{of_task} must be in ascending order of from_tokens"
            yield Violation(f"bands[{bands[at][0]}].from_tokens", problem)
    if policy.risk is Risk.HIGH and policy.guards.max_tier is None:
        for path, tier in _tiers(policy):
            if tier is Tier.AGGRESSIVE:
                problem = (
                    "a high-risk domain may not reach aggressive; set guards.max_tier to allow or cap it explicitly"
                )
                yield Violation(path, problem)


def _tiers(policy: Policy) -> Iterator[tuple[str, Tier]]:
    for number, band in enumerate(policy.bands):
        yield f"bands[{number}].tier", band.tier
    for number, rule in enumerate(policy.rules):
        yield f"rules[{number}].tier", rule.tier


def _rules(policy: Policy) -> Iterator[Violation]:
    names = Counter(rule.name for rule in policy.rules)
    shared = context(SAMPLE)
    for number, rule in enumerate(policy.rules):
        if not rule.name:
            yield Violation(f"rules[{number}].name", "is empty")
        elif names[rule.name] > 1:
            yield Violation(
                f"rules[{number}].name", f"{rule.name!r} is used {names[rule.name]} times; names are unique"
            )
        try:
            condition = Condition(rule.when)
        except ValueError as error:
            yield Violation(f"rules[{number}].when", str(error))
            continue
        try:
            condition.holds(shared)
        except ValueError as error:
            # A missing label is an ordinary miss at run time; a wrong type never comes right.
            if "not bool" in str(error) or "overload" in str(error).lower() or "type" in str(error).lower():
                yield Violation(f"rules[{number}].when", str(error))


def _detection(policy: Policy) -> Iterator[Violation]:
    for number, literal in enumerate(policy.detection.literals):
        if len(literal.strip()) < 3:
            yield Violation(f"detection.literals[{number}]", "must have at least 3 characters")
    for number, pattern in enumerate(policy.detection.patterns):
        if problem := pattern_problem(pattern):
            yield Violation(f"detection.patterns[{number}]", problem)


def _rollout(policy: Policy) -> Iterator[Violation]:
    if policy.rollout is None:
        return
    steps = policy.rollout.steps
    if not steps or list(steps) != sorted(set(steps)) or steps[-1] != 100:
        yield Violation("rollout.steps", "must be ascending percentages, the last of them 100")
    elif policy.rollout.step >= len(steps):
        yield Violation("rollout.step", f"must be below {len(steps)}, the number of steps")


def _fallback(policy: Policy) -> Iterator[Violation]:
    order = policy.fallback
    for number in range(1, len(order)):
        if order[number] >= order[number - 1]:
            problem = f"must be denser than {order[number - 1].word}, the tier before it"
            yield Violation(f"fallback[{number}]", problem)
