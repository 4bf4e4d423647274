from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_cli.requests import demo
from sparsity_cli.requests.demo import ALONE, Row, _fill, _fitting, _run
from sparsity_policies.model import Tier
from sparsity_router.embedded.state import Process, Running
from sparsity_rpc.errors import UnavailableError


@pytest.mark.parametrize(
    ("tier", "prefill", "decode", "words"),
    [
        ("aggressive", 1.0, 1.0, "attended everything"),
        ("aggressive", 1.0, 0.4, "attended the whole prompt"),
        ("moderate", 0.3, 1.0, ""),
        ("dense", 1.0, 1.0, ""),
    ],
)
def test_a_sparse_tier_that_attended_everything_is_marked(tier: str, prefill: float, decode: float, words: str) -> None:
    row, completion = Row("r", ""), inference_pb2.Completion()
    completion.decision.tier = Tier[tier.upper()].value
    completion.decision.reason = inference_pb2.REASON_LENGTH_BAND
    completion.sparsity.prefill_density, completion.sparsity.decode_density = prefill, decode
    _fill(row, completion)
    assert row.tier == tier
    assert row.whole == words


@pytest.mark.parametrize(("cached", "words"), [(960, "attended everything"), (1024, "")])
def test_a_prompt_that_the_cache_had_does_not_count_as_attended_whole(cached: int, words: str) -> None:
    row, completion = Row("r", ""), inference_pb2.Completion()
    completion.decision.tier = Tier.AGGRESSIVE.value
    completion.decision.reason = inference_pb2.REASON_LENGTH_BAND
    completion.sparsity.prefill_density = completion.sparsity.decode_density = 1.0
    completion.usage.prompt_tokens, completion.usage.cached_tokens = 2000, cached
    _fill(row, completion)
    assert row.cached_tokens == cached
    assert row.whole == words


def test_dense_requests_share_a_text_and_follow_each_other_and_sparse_ones_share_none() -> None:
    """Of the first the cache has the text; of the others it must not, for density to tell of the whole prompt."""
    long = [case for case in demo.CASES if case.tokens and not case.as_token_ids]
    assert len({case.text for case in long if case.tier is Tier.DENSE}) == 1
    dense = [case.tier is Tier.DENSE for case in long[1:]]
    assert dense == sorted(dense, reverse=True)
    sparse = [(case.tier, case.text) for case in long if case.tier is not Tier.DENSE]
    assert len({text for _, text in sparse}) == len(sparse)


def test_what_was_not_reported_is_neither_sparse_nor_whole() -> None:
    row = Row("r", "", "aggressive")
    assert (row.density, row.coverage, row.whole) == (None, None, "")


class Client:
    """Answers by what `answers` gives, one after the other; the last stays."""

    def __init__(self, *answers: Tier | Exception) -> None:
        self.answers = list(answers)

    def explain(self, request: inference_pb2.GenerateRequest) -> Any:
        answer = inference_pb2.ExplainResponse()
        answer.signals.max_tokens = 7000
        return answer

    def generate(self, request: Any, timeout: float) -> Iterator[inference_pb2.GenerateResponse]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        response = inference_pb2.GenerateResponse(text="a", token_ids=[1])
        response.completion.decision.tier = answer.value
        response.completion.decision.reason = inference_pb2.REASON_LENGTH_BAND
        yield response


def running(*names: str) -> Running:
    """A note of three tiers, served by the processes of these names."""
    processes = [Process(name, 1, "a:1", "log") for name in names]
    workers = {tier.word: processes[place % len(names)] for place, tier in enumerate(Tier)}
    return Running(1, "a:1", "redis://x", "m", workers, 1.0)


AWAY = UnavailableError("no worker can be reached")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], Row]:
    """Runs the case of a service with one worker, none of which is killed."""
    monkeypatch.setattr(demo, "_kill", lambda running: None)
    monkeypatch.setattr(demo, "_PATIENCE_SECONDS", 0.0)
    return lambda client: _run(client, ALONE, 4, running("worker"))  # type: ignore[arg-type]


def test_the_only_worker_is_waited_for(killed: Callable[[Client], Row]) -> None:
    row = killed(Client(AWAY, AWAY, Tier.AGGRESSIVE))
    assert row.ok
    assert row.refused == "no worker can be reached"
    assert row.text == "a"


def test_an_answer_of_nobody_is_a_mistake(killed: Callable[[Client], Row]) -> None:
    row = killed(Client(Tier.AGGRESSIVE))
    assert not row.ok
    assert "while its only worker was away" in row.problem
    assert not killed(Client(AWAY, Tier.DENSE)).ok


def test_a_worker_that_does_not_return_is_told(
    killed: Callable[[Client], Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_RETURN_SECONDS", 0.0)
    row = killed(Client(AWAY))
    assert not row.ok
    assert row.problem == "no worker can be reached"


def test_pools_have_somebody_else_to_serve() -> None:
    (case,) = [case for case in demo.CASES if case.kill]
    assert _fitting(case, running("worker")) is ALONE
    assert _fitting(case, running("worker-dense", "worker-moderate", "worker-aggressive")) is case
    assert all(_fitting(case, None) is case for case in demo.CASES)
