"""The account of several answers: what is told of all of them as one request."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.decide import decide
from sparsity_policies.model import Decision, Signals, Tier
from sparsity_router.observing.account import Account
from sparsity_router.observing.observer import EndedRequest
from support.stores.snapshots import snapshot

GIVEN = decide(Signals(5000, 5000, domain="rag"), snapshot())
DENSE, MODERATE, AGGRESSIVE = (replace(GIVEN, tier=tier) for tier in Tier)


class Observer:
    """What it was told of."""

    def __init__(self) -> None:
        self.told: list[EndedRequest] = []

    def ended(self, request: EndedRequest) -> None:
        self.told.append(request)


def opened(answers: int) -> tuple[Account, Observer]:
    observer = Observer()
    decided: Any = SimpleNamespace(
        signals=Signals(2, 2), decision_id="d", review=SimpleNamespace(decision=GIVEN, signals=Signals(2, 2))
    )
    return Account(cast(Any, observer), decided, inference_pb2.GenerateRequest(n=answers), 0.0), observer


def token() -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(token_ids=[1])


def end(coverage: float) -> inference_pb2.GenerateResponse:
    usage = inference_pb2.Usage(prompt_tokens=2, completion_tokens=3)
    completion = inference_pb2.Completion(usage=usage, sparsity=inference_pb2.SparsityReport(coverage=coverage))
    return inference_pb2.GenerateResponse(completion=completion)


# What serves two answers and what policy gave them; a violation is told, wherever the others go.
PAIRS = [
    ((MODERATE, DENSE), (AGGRESSIVE, AGGRESSIVE), 0),
    ((MODERATE, MODERATE), (AGGRESSIVE, AGGRESSIVE), 1),
    ((DENSE, DENSE), (DENSE, AGGRESSIVE), 0),
    ((MODERATE, DENSE), (AGGRESSIVE, MODERATE), 1),
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("one", "other", "speaks"), PAIRS)
def test_the_one_that_was_served_beyond_its_policy_speaks_for_all(
    one: tuple[Decision, Decision], other: tuple[Decision, Decision], speaks: int, turned: bool
) -> None:
    account, observer = opened(2)
    for served, policy in (other, one) if turned else (one, other):
        account.add(token(), served, policy)
    for coverage, (served, policy) in zip((0.75, 0.5), (one, other), strict=True):
        account.add(end(coverage), served, policy)
    (told,) = observer.told
    assert (told.served, told.decision) == (one, other)[speaks]
    if one[0].tier is not other[0].tier:
        # The guards take a report for one of the tier that speaks.
        assert told.report is not None
        assert told.report.coverage == (0.75, 0.5)[speaks]


def test_an_answer_that_is_decided_anew_leaves_what_served_another() -> None:
    account, observer = opened(2)
    account.add(token(), MODERATE, DENSE)
    account.decided_anew(account.decided)
    account.close()
    assert (observer.told[0].served, observer.told[0].decision) == (MODERATE, DENSE)


def test_what_ended_well_is_told_of_though_another_failed() -> None:
    account, observer = opened(3)
    for served in (MODERATE, AGGRESSIVE, AGGRESSIVE):
        account.add(token(), served, AGGRESSIVE)
    account.add(end(0.25), MODERATE, AGGRESSIVE)
    account.add(end(0.5), AGGRESSIVE, AGGRESSIVE)
    account.close()
    (told,) = observer.told
    assert told.report is not None
    assert (told.served, told.report.coverage, told.error) == (AGGRESSIVE, 0.5, "CANCELLED")
    assert told.completion is not None
    assert told.completion.usage.completion_tokens == 6
    # None of the tier that speaks: the report of another is none of it.
    account, observer = opened(2)
    account.add(token(), AGGRESSIVE, AGGRESSIVE)
    account.add(end(0.25), MODERATE, AGGRESSIVE)
    account.close()
    assert (observer.told[0].served, observer.told[0].report) == (AGGRESSIVE, None)
