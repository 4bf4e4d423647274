"""Whether figures may be shown at all, and the rows of the result file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from sparsity_serving.benchmark import Row, against, judged, percentile
from sparsity_worker.keys import BACKEND, DENSE_BACKEND

from sparsity_bench.serving.baseline import OURS, SHARED, THIRDS, UNACCOUNTED, VARIANTS
from sparsity_bench.serving.loads.repeats import Repeats
from sparsity_bench.serving.measured import Measured
from sparsity_bench.serving.plan import Plan

_NEVER_SLOWER: Final = 0.98
# Of one worker of all tiers, under a load of all: throughput and time to the first token; the latter of dense requests.
_SHARED: Final = 1.3
_SHARED_DENSE: Final = 1 / 1.05
# And times three workers that share the device.
_THIRDS: Final = 2.0
_START: Final = 1.2
_ACCOUNTS: Final = 0.01
# One wrong first token of ten: made-up weights leave near ties, and tiers may round differently.
_PARITY: Final = 0.9


def faults(found: Mapping[str, Measured]) -> list[str]:
    """Why nothing of the run may be called faster; empty when all is well."""
    if "dense" not in found:
        return ["dense: was not measured; nothing stands beside the other tiers"]
    wrong = []
    for tier, measured in found.items():
        if tier == "dense":
            continue
        own, sparse = measured.own, tier not in (OURS, f"{SHARED}-dense")
        if any(measured.head.get(key) != found["dense"].head.get(key) for key in ("device", "versions", "ranks")):
            wrong.append(
                f"{tier}: was measured on another device, by other ranks, or with other versions, than the dense tier"
            )
        if tier in (SHARED, THIRDS):
            continue
        if own["backend"] != (DENSE_BACKEND if tier == OURS else BACKEND) or (sparse and not own["sparse_calls"]):
            wrong.append(f"{tier}: the backend {own['backend']} proved nothing at start")
        if tier == UNACCOUNTED:
            continue
        longest = max(measured.first, default=0) if sparse else 0
        if sparse and (not longest or not measured.sparse_calls[longest] or measured.density[longest] >= 1):
            wrong.append(f"{tier}: {longest} tokens were attended whole")
        pairs = list(zip(measured.answers, found["dense"].answers, strict=False))
        equal = sum(a == b for a, b in pairs)
        if not pairs or equal < _PARITY * len(pairs):
            wrong.append(f"{tier}: of {len(pairs)} short prompts only {equal} get dense attention's token")
        wrong += [f"{tier}: {fault}" for fault in measured.faults]
    return wrong


def rows(found: Mapping[str, Measured], plan: Plan) -> Iterator[Row]:
    """The figures, dense beside each."""
    dense = found["dense"]
    baseline = f"dense, {dense.own['backend']}"
    for tier, own in found.items():
        if tier == UNACCOUNTED:
            yield from _accounts(own, found.get(VARIANTS[tier].tier), plan)
            continue
        goals = tier.removeprefix(f"{SHARED}-")
        for length, times in own.first.items():
            shape = f"{plan.name}, {length} tokens, density {own.density[length]:.3f}"
            row = Row(f"{tier}: time to first token", shape, statistics.median(times), "s")
            goal = plan.goals.first.get(goals, {}).get(length, _NEVER_SLOWER)
            yield row if own is dense else _beside(row, baseline, dense.first.get(length), goal)
        for batch, times in own.per_token.items():
            shape = f"{plan.name}, {batch} tokens, density {own.decode_density[batch]:.3f}"
            row = Row(f"{tier}: time per output token", shape, statistics.median(times), "s")
            goal = plan.goals.per_token.get(goals, {}).get(batch, _NEVER_SLOWER)
            yield row if own is dense else _beside(row, baseline, dense.per_token.get(batch), goal)
        yield from _load(tier, own, dense, plan, baseline)
        yield from _load_of_tiers(tier, own, dense, plan, baseline)
        if tier == THIRDS:
            yield from _shared_beside(found.get(SHARED), own, plan)
            continue
        for name, joules in own.joules.items():
            shape = f"{plan.name}, prompts of {name} tokens" if name.isdecimal() else f"{plan.name}, mixed {name}"
            row = Row(f"{tier}: energy of a thousand tokens", shape, joules, "J")
            yield row if own is dense or name not in dense.joules else against(row, baseline, dense.joules[name])
        if own.repeats is not None:
            yield from _repeats(tier, own.repeats, plan)
        if tier.startswith(f"{SHARED}-"):
            continue
        if own.start:
            row = Row(f"{tier}: start to serving", f"{plan.name}, made-up weights, kernels compiled", own.start, "s")
            if own is not dense and dense.start:
                row = judged(
                    against(row, baseline, dense.start), f"<= {_START:g} times", met=own.start <= _START * dense.start
                )
            yield row
        if own.own["backend"] in (BACKEND, DENSE_BACKEND):
            row = Row(f"{tier}: kernels compiled while serving", plan.name, len(own.compiled), "kernels")
            yield judged(row, "none", met=not own.compiled)
        yield Row(f"{tier}: page summaries", plan.name, own.own["summary_bytes"] / 2**20, "MiB")


def beside_one_rank(found: Mapping[str, Measured], one: Mapping[str, Measured], plan: Plan) -> Iterator[Row]:
    """What several ranks take, beside one with the same tier.

    Args:
        found: the figures of several ranks.
        one: those of one.
        plan: of both.
    """
    for tier, own in found.items():
        alone = one.get(tier, Measured(tier, {}))
        figures: list[tuple[str, Mapping[Any, list[float]], Mapping[Any, list[float]]]] = [
            ("time to first token", own.first, alone.first),
            ("time per output token", own.per_token, alone.per_token),
        ]
        for name, several, single in figures:
            for shape in [each for each in several if each in single]:
                row = Row(
                    f"{tier}: {name}, beside one rank", f"{plan.name}, {shape} tokens",
                    statistics.median(several[shape]), "s",
                )  # fmt: skip
                yield against(row, "one rank", statistics.median(single[shape]))


def _repeats(tier: str, own: Repeats, plan: Plan) -> Iterator[Row]:
    """Of the answers alone again all must be alike; elsewhere rounding differs, and made-up weights leave near ties."""
    shape = f"{plan.name}, {', '.join(map(str, plan.repeated))} tokens"
    row = Row(f"{tier}: tokens and densities alike, alone again", shape, own.alone / own.alone_of, "share")
    yield judged(row, "1", met=own.alone == own.alone_of)
    row = Row(f"{tier}: first token alike, among the others", shape, own.among / own.among_of, "share")
    yield judged(row, f">= {_PARITY:g}", met=own.among >= _PARITY * own.among_of)
    if own.among_whole is not None:
        row = Row(f"{tier}: all tokens alike, among the others", shape, own.among_whole / own.among_of, "share")
        yield judged(row, "1", met=own.among_whole == own.among_of)
    yield Row(f"{tier}: density among the others, largest difference", shape, own.apart, "density")
    cold = f"{plan.name}, {plan.interrupted} tokens"
    row = Row(f"{tier}: first token alike, after an abort", cold, own.aborted / own.aborted_of, "share")
    yield judged(row, "1", met=own.aborted == own.aborted_of)
    if own.aborted_whole is not None:
        row = Row(f"{tier}: all tokens alike, after an abort", cold, own.aborted_whole / own.aborted_of, "share")
        yield judged(row, "1", met=own.aborted_whole == own.aborted_of)


def _accounts(off: Measured, on: Measured | None, plan: Plan) -> Iterator[Row]:
    """What reports and ledgers cost: times with them beside times without."""
    if on is None:
        return
    pairs = [("a prompt", f"{length} tokens", on.first.get(length), times) for length, times in off.first.items()]
    pairs += [
        ("a decode step", f"{batch} tokens", on.per_token.get(batch), times) for batch, times in off.per_token.items()
    ]
    for what, shape, times, without in pairs:
        if times is not None:
            share = 1 - statistics.median(without) / statistics.median(times)
            row = Row(f"{on.tier}: accounts, of the time of {what}", f"{plan.name}, {shape}", share, "share")
            yield judged(row, f"<= {_ACCOUNTS:g}", met=share <= _ACCOUNTS)


def _load(tier: str, own: Measured, dense: Measured, plan: Plan, baseline: str) -> Iterator[Row]:
    if own.throughput is None:
        return
    short, long = plan.load_lengths
    load = f"{plan.load} requests, a fifth of {long} tokens, the rest of {short}, {plan.rate:g} a second"
    row = Row(f"{tier}: throughput of a mixed load", load, own.throughput, "tokens/s")
    yield (
        row if own is dense else _more(row, baseline, dense.throughput, plan.goals.throughput.get(tier, _NEVER_SLOWER))
    )
    for name, share in (("median", 0.5), ("99th percentile", 0.99)):
        row = Row(
            f"{tier}: time to first token of its short requests, {name}", load, percentile(own.load_first, share), "s"
        )
        yield (
            row if own is dense or not dense.load_first else against(row, baseline, percentile(dense.load_first, share))
        )


def _load_of_tiers(tier: str, own: Measured, dense: Measured, plan: Plan, baseline: str) -> Iterator[Row]:
    """One worker of all tiers, and the dense one under the same requests."""
    if own.tiers_throughput is None:
        return
    load = _tiers_load(plan)
    row = Row(f"{tier}: throughput of a load of three tiers", load, own.tiers_throughput, "tokens/s")
    goal = None if tier == THIRDS else _SHARED if tier == SHARED else _NEVER_SLOWER
    yield row if own is dense else _more(row, baseline, dense.tiers_throughput, goal)
    goals = {"": _SHARED, "dense": _SHARED_DENSE}
    for kind in ("", *own.tiers_first):
        name = f"{tier}: time to first token of {kind or 'all'} requests, median"
        row, beside = Row(name, load, statistics.median(_of_kind(own, kind)), "s"), _of_kind(dense, kind)
        if own is not dense and beside:
            row = against(row, baseline, statistics.median(beside))
            if tier == SHARED and kind in goals and row.ratio is not None:
                row = judged(row, f">= {goals[kind]:.2f} times", met=row.ratio >= goals[kind])
        yield row


def _shared_beside(shared: Measured | None, thirds: Measured, plan: Plan) -> Iterator[Row]:
    """One worker of all tiers, and three that share the device, under the same requests."""
    if shared is None or shared.tiers_throughput is None or thirds.tiers_throughput is None:
        return
    load, beside = _tiers_load(plan), "three workers in thirds of the device"
    row = Row(
        f"{SHARED}: throughput of a load of three tiers, beside workers of one",
        load,
        shared.tiers_throughput,
        "tokens/s",
    )
    yield _more(row, beside, thirds.tiers_throughput, _THIRDS)
    row = Row(
        f"{SHARED}: time to first token of all requests, median, beside workers of one", load,
        statistics.median(_of_kind(shared, "")), "s",
    )  # fmt: skip
    yield _beside(row, beside, _of_kind(thirds, ""), _THIRDS)


def _tiers_load(plan: Plan) -> str:
    lengths = ", ".join(map(str, plan.tiers_lengths))
    return f"{plan.tiers_load} requests, a third a tier, of {lengths} tokens, {plan.tiers_rate:g} a second"


def _of_kind(own: Measured, kind: str) -> list[float]:
    return own.tiers_first.get(kind, []) if kind else [each for times in own.tiers_first.values() for each in times]


def _beside(row: Row, baseline: str, dense: list[float] | None, goal: float) -> Row:
    if dense is None:
        return row
    row = against(row, baseline, statistics.median(dense))
    assert row.ratio is not None
    return judged(row, f">= {goal:g} times", met=row.ratio >= goal)


def _more(row: Row, baseline: str, value: float | None, goal: float | None) -> Row:
    """A rate beside the baseline's."""
    if not value or row.value is None:
        return row
    times = row.value / value
    row = replace(row, baseline=baseline, baseline_value=value, ratio=times)
    return row if goal is None else judged(row, f">= {goal:g} times", met=times >= goal)
