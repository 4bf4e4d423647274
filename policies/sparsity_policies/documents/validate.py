"""What a policy of the right shape can still get wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from sparsity_rpc.errors import Violation
from sparsity_serving.bounds import MAX_NAME

from sparsity_policies.matching.cel_cost import MAX_POLICY_STEPS
from sparsity_policies.matching.conditions import Condition
from sparsity_policies.matching.expressions import pattern_problem
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.reachability import unreachable
from sparsity_policies.model import Band, Policy, Risk, Tier

MAX_RULES = 256
MAX_BANDS = 256


def check_policy(policy: Policy) -> list[Violation]:
    """Every mistake, none when the policy is sound."""
    for name, there, most in (("rules", policy.rules, MAX_RULES), ("bands", policy.bands, MAX_BANDS)):
        if len(there) > most:
            return [Violation(name, f"are {len(there)}; a policy has {most} at most")]
    return [
        *_bands(policy),
        *_rules(policy),
        *unreachable(policy),
        *_detection(policy),
        *_guards(policy),
        *_rollout(policy),
        *_fallback(policy),
    ]


def check_exemplars(policy: Policy, others: Iterable[Policy]) -> list[Violation]:
    """Exemplars that another domain claims too, which would make the same prompt belong to both."""
    wanted = {_normal(text): number for number, text in enumerate(policy.detection.exemplars)}
    if not wanted:
        return []
    return [
        Violation(
            f"detection.exemplars[{wanted[text]}]",
            f"is an exemplar of {other.domain} too: remove it from one of them",
        )
        for other in others
        if other.domain != policy.domain
        for text in sorted({_normal(text) for text in other.detection.exemplars} & wanted.keys())
    ]


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


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


def _guards(policy: Policy) -> Iterator[Violation]:
    metric, field = policy.guards.quality_metric, "guards.quality_metric"
    if metric and policy.guards.max_quality_dip is None:
        yield Violation(field, "names what no dip is told by; set guards.max_quality_dip, too")
    if len(metric) > MAX_NAME:
        yield Violation(field, f"must have {MAX_NAME} characters at most")


def _tiers(policy: Policy) -> Iterator[tuple[str, Tier]]:
    for number, band in enumerate(policy.bands):
        yield f"bands[{number}].tier", band.tier
    for number, rule in enumerate(policy.rules):
        yield f"rules[{number}].tier", rule.tier


def _rules(policy: Policy) -> Iterator[Violation]:
    steps = 0
    names = Counter(rule.name for rule in policy.rules)
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
        steps += condition.steps
        if problem := condition.type_error():
            yield Violation(f"rules[{number}].when", problem)
    if steps > MAX_POLICY_STEPS:
        yield Violation("rules", f"may take {steps} steps together for one request; {MAX_POLICY_STEPS} at most")


def _detection(policy: Policy) -> Iterator[Violation]:
    for number, literal in enumerate(policy.detection.literals):
        if len(folded(literal).strip()) < 3:
            yield Violation(f"detection.literals[{number}]", "must have at least 3 characters")
    seen: dict[str, int] = {}
    for number, exemplar in enumerate(policy.detection.exemplars):
        if not exemplar.strip():
            yield Violation(f"detection.exemplars[{number}]", "is empty")
        if (first := seen.setdefault(_normal(exemplar), number)) != number:
            yield Violation(f"detection.exemplars[{number}]", f"repeats detection.exemplars[{first}]")
    for number, pattern in enumerate(policy.detection.patterns):
        if problem := pattern_problem(pattern):
            yield Violation(f"detection.patterns[{number}]", problem)


def _rollout(policy: Policy) -> Iterator[Violation]:
    if policy.rollout is None:
        return
    rollout, steps = policy.rollout, policy.rollout.steps
    if not steps or list(steps) != sorted(set(steps)) or steps[-1] != 100 or steps[0] == 0:
        yield Violation("rollout.steps", "must be ascending percentages from 1, the last of them 100")
    elif rollout.step >= len(steps):
        yield Violation("rollout.step", f"must be below {len(steps)}, the number of steps")
    if len(rollout.pauses) >= max(len(steps), 1):
        yield Violation("rollout.pauses", f"must have fewer entries than steps; the last of {len(steps)} has no next")
    sparsest = max((tier for _, tier in _tiers(policy)), default=Tier.DENSE)
    if rollout.held_back >= sparsest > Tier.DENSE:
        problem = f"must be denser than {sparsest.word}, the sparsest tier of this policy; else nothing is rolled out"
        yield Violation("rollout.held_back", problem)


def _fallback(policy: Policy) -> Iterator[Violation]:
    order = policy.fallback
    for number in range(1, len(order)):
        if order[number] >= order[number - 1]:
            problem = f"must be denser than {order[number - 1].word}, the tier before it"
            yield Violation(f"fallback[{number}]", problem)
