"""Several answers to one request, by gRPC and by HTTP: each by itself, under one decision."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client import AsyncClient, RawText, Request, Sampling
from sparsity_client.wire import make_request
from sparsity_policies.model import Tier
from sparsity_router.callers.admission import Callers
from sparsity_router.fleet.fleet import Admission
from sparsity_router.fleet.workers import State
from sparsity_router.relaying import choices
from sparsity_router.relaying.answers import Answers
from sparsity_rpc.errors import DrainingError, InvalidRequestError, UnavailableError
from sparsity_rpc.status import to_error
from support.routers.http_door import events, http_door
from support.routers.rig import AGGRESSIVE, DENSE, LONG, Rig, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, fail, hang


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def several(n: int, prompt: str = "hi", domain: str = "medical", **sampling: Any) -> inference_pb2.GenerateRequest:
    request = make_request(prompt, domain=domain)
    request.n = n
    request.sampling.MergeFrom(inference_pb2.SamplingParams(**sampling))
    return request


async def whole(r: Rig, request: Any) -> list[Any]:
    return [response async for response in r.stub.Generate(request, timeout=10.0)]


async def counts(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    """Answers with the seed, in two parts, and with the tokens that it says it used."""
    yield inference_pb2.GenerateResponse(text="seed ", token_ids=[1])
    # The others speak in between.
    await asyncio.sleep(0.02)
    yield inference_pb2.GenerateResponse(text=str(request.sampling.seed), token_ids=[2, 3])
    completion = inference_pb2.Completion(worker_id=worker.name, finish_reason=inference_pb2.FINISH_REASON_STOP)
    completion.usage.prompt_tokens, completion.usage.completion_tokens = 2, 3
    yield inference_pb2.GenerateResponse(completion=completion)


def by_choice(found: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for each in found:
        texts[each.choice] = texts.get(each.choice, "") + each.text
    return texts


async def test_each_is_drawn_by_itself_under_one_decision(model: Path) -> None:
    worker = FakeWorker("d", DENSE, model, counts, places=8)
    async with rig(model, worker) as r:
        found = await whole(r, several(3, seed=7))
        assert by_choice(found) == {0: "seed 7", 1: "seed 8", 2: "seed 9"}
        ends = [each.completion for each in found if each.HasField("completion")]
        assert len(ends) == 3
        (decision_id,) = {end.decision.decision_id for end in ends}
        asked = [request.request_id for request in worker.received]
        assert asked == [f"{decision_id}.1", f"{decision_id}-1.1", f"{decision_id}-2.1"]
        # One is as it always was.
        (plain,) = {each.choice for each in await whole(r, make_request("hi", domain="medical"))}
        assert plain == 0


async def test_the_others_begin_once_the_first_has_spoken(model: Path) -> None:
    spoke = asyncio.Event()

    async def waits(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await spoke.wait()
        async for response in counts(worker, request, context):
            yield response

    worker = FakeWorker("d", DENSE, model, waits, places=8)
    async with rig(model, worker) as r:
        asking = asyncio.create_task(whole(r, several(3)))
        await asyncio.sleep(0.3)
        assert len(worker.received) == 1
        spoke.set()
        assert by_choice(await asking) == dict.fromkeys(range(3), "seed 0")


async def test_one_that_fails_ends_all(model: Path) -> None:
    async def second_fails(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        behaviour = fail(grpc.StatusCode.INTERNAL, after=1) if "-1." in request.request_id else hang_after_one
        async for response in behaviour(worker, request, context):
            yield response

    async def hang_after_one(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        async for response in hang(worker, request, context):
            yield response

    worker = FakeWorker("d", DENSE, model, second_fails, places=8)
    async with rig(model, worker) as r:
        error = await refusal(whole(r, several(3)))
        assert (error.code(), "failed mid-stream" in error.details()) == (grpc.StatusCode.ABORTED, True)
        await until(lambda: worker.cancelled == 2)
        assert r.fleet.workers[0].in_flight == 0
        worker.cancelled = 0
        worker.behaviour = hang_after_one
        await until(lambda: r.fleet.workers[0].state.name == "READY")
        call = r.stub.Generate(several(3))
        assert {(await call.read()).choice for _ in range(3)} == {0, 1, 2}
        call.cancel()
        await until(lambda: worker.cancelled == 3)
        assert r.fleet.workers[0].in_flight == 0


@pytest.mark.parametrize("n", [0, 17, 2**31])
async def test_so_many_are_refused_by_name(model: Path, n: int) -> None:
    worker = FakeWorker("d", DENSE, model)
    async with rig(model, worker) as r:
        error = cast(InvalidRequestError, to_error(await refusal(whole(r, several(n)))))
        assert error.field == "n"
        assert not worker.received


async def test_a_worker_that_failed_before_its_first_token_is_replaced_for_that_answer_alone(model: Path) -> None:
    async def fails_once(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        if "-1." in request.request_id:
            await context.abort(grpc.StatusCode.INTERNAL, "as told")
        async for response in answer(worker, request, context):
            yield response

    sparse, dense = FakeWorker("a", AGGRESSIVE, model, fails_once, places=8), FakeWorker("d", DENSE, model, places=8)
    async with rig(model, sparse, dense) as r:
        found = await whole(r, several(2, LONG, "low"))
        served = {each.choice: each.completion for each in found if each.HasField("completion")}
        assert [(served[at].worker_id, served[at].decision.tier) for at in (0, 1)] == [("a", AGGRESSIVE), ("d", DENSE)]


async def test_one_whose_call_was_cancelled_holds_up_nobody() -> None:
    async def one(number: int) -> AsyncGenerator[Any]:
        yield f"of {number}"
        if number:
            # As a call of a channel that was closed ends.
            raise asyncio.CancelledError
        await asyncio.sleep(3600)

    async with asyncio.timeout(5.0):
        with pytest.raises(UnavailableError, match="was cancelled"):
            _ = [each async for each in choices.relayed(2, one, Answers())]


def asked(*workers: FakeWorker) -> list[str]:
    """The ids of what they were sent."""
    return [request.request_id for worker in workers for request in worker.received]


async def test_the_others_go_to_the_worker_that_speaks(model: Path) -> None:
    workers = [FakeWorker(name, DENSE, model, counts, places=8) for name in "abc"]
    async with rig(model, *workers) as r:
        await whole(r, several(4))
        assert sorted(len(worker.received) for worker in workers) == [0, 0, 4]


async def test_all_together_take_no_more_workers_with_them_than_one(model: Path) -> None:
    async def kills(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        if "-" in request.request_id:
            # The others are asked meanwhile, and do not die at the same moment.
            await asyncio.sleep(0.3 if "-1." in request.request_id else 0.6)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        await asyncio.sleep(3600)

    workers = [FakeWorker(str(number), DENSE, model, kills, places=1) for number in range(7)]
    async with rig(model, *workers) as r:
        error = await refusal(whole(r, several(3)))
        assert (error.code(), "2 workers died" in error.details()) == (grpc.StatusCode.ABORTED, True)
        assert sum("-" in each for each in asked(*workers)) == 2


async def test_after_a_death_they_are_asked_for_one_by_one(model: Path) -> None:
    async def kills(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        if "-1." in request.request_id or request.request_id.endswith(".1"):
            await asyncio.sleep(0.1)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        async for response in counts(worker, request, context):
            yield response

    workers = [FakeWorker(str(number), DENSE, model, kills, places=8) for number in range(5)]
    async with rig(model, *workers) as r:
        assert "2 workers died" in (await refusal(whole(r, several(3)))).details()
        assert len(asked(*workers)) == 3
        assert not any("-2." in each for each in asked(*workers))


async def test_an_answer_that_waits_for_another_holds_up_nobody_in_the_queue(model: Path) -> None:
    async def speaks(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        await asyncio.sleep(3600)

    async def dies(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        worker.requests = 1
        await asyncio.sleep(0.3)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
        yield inference_pb2.GenerateResponse()

    behaviours = {"a": speaks, "b": dies, "c": hang, "d": answer}
    workers = {name: FakeWorker(name, DENSE, model, behave, places=1) for name, behave in behaviours.items()}
    for name in "bcd":
        workers[name].requests = 1
    async with rig(model, *workers.values(), admission=Admission(queue_seconds=4.0)) as r:
        queue, watched = r.fleet.queues[Tier.DENSE], {worker.name: worker for worker in r.fleet.workers}
        await until(lambda: all(watched[name].state is State.FULL for name in "bcd"))
        asking = asyncio.create_task(whole(r, several(3)))
        await until(lambda: len(queue) == 2)
        # One answer's worker dies; the next worker is silent for the other, and both come after one another now.
        workers["b"].requests = 0
        await until(lambda: workers["b"].received)
        await until(lambda: len(queue) == 2)
        workers["c"].requests = 0
        await until(lambda: workers["c"].received)
        workers["d"].requests = 0
        await until(lambda: watched["d"].state is State.READY)
        assert (await r.generate("hi", domain="medical"))[1].worker_id == "d"
        assert not asking.done()
        # Nor does it wait longer than the queue's time for what may be minutes.
        error = await refusal(asking)
        assert (error.code(), len(asked(workers["d"]))) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)


def test_a_death_counts_once_for_all_answers_that_it_ended() -> None:
    shared, began = Answers(), time.monotonic()
    for _ in range(3):
        shared.died("a", began)
    assert shared.deaths == 1
    # It came back, and died of the next.
    shared.died("a", time.monotonic())
    shared.died("b", began)
    assert shared.deaths == 3


class Limits:
    """What a tenant was charged, and given back."""

    def __init__(self) -> None:
        self.requests = self.charged = self.back = 0

    def priority(self, tenant: str) -> int:
        return 9

    async def request(self, tenant: str, answers: int) -> None:
        self.requests += answers

    async def tokens(self, tenant: str, tokens: int) -> None:
        self.charged = tokens

    def give_back(self, tenant: str, requests: int = 0, tokens: int = 0) -> None:
        self.back = tokens


class Observer:
    """What it was told of."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def classified(self, decided: Any) -> None:
        return

    def ended(self, ended: Any) -> None:
        self.told.append(ended)


async def test_all_are_charged_and_told_of_as_one_request(model: Path) -> None:
    limits, observer = Limits(), Observer()
    worker = FakeWorker("d", DENSE, model, counts, places=8)
    async with rig(model, worker, callers=Callers(None, cast(Any, limits)), observer=observer) as r:
        await whole(r, several(3, max_new_tokens=10))
        assert limits.requests == 3
        # As many as the prompt may have, and ten for each; three for each were made of its two.
        assert limits.charged >= 2 + 30
        assert limits.charged - limits.back == 2 + 9
        (ended,) = observer.told
        assert (ended.completion.usage.prompt_tokens, ended.completion.usage.completion_tokens) == (2, 9)


async def refuses(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    raise DrainingError("as told")
    yield inference_pb2.GenerateResponse()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("behaviour", "tokens"), [(None, 0), (fail(grpc.StatusCode.RESOURCE_EXHAUSTED), 0), (refuses, 0), (hang, 1)]
)
async def test_who_leaves_pays_for_the_prompt_once_a_worker_has_it(
    model: Path, n: int, behaviour: Any, tokens: int
) -> None:
    limits = Limits()
    worker = FakeWorker("d", DENSE, model, behaviour or hang, requests=4 * (behaviour is None))
    admission, callers = Admission(queue_seconds=20.0), Callers(None, cast(Any, limits))
    full = FakeWorker("full", DENSE, model, requests=4)
    async with rig(model, worker, full, callers=callers, admission=admission) as r:
        queue = r.fleet.queues[Tier.DENSE]
        await until(lambda: r.fleet.workers[1].state is State.FULL)
        await until(lambda: (r.fleet.workers[0].state is State.FULL) is (behaviour is None))
        asking = asyncio.create_task(whole(r, several(n)))
        await until(lambda: worker.received if behaviour else queue)
        # It waits in the queue while its attempt begins, too.
        await until(lambda: behaviour is hang or (len(queue) == 1 and r.fleet.workers[0].state is not State.READY))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: limits.back)
        assert limits.charged - limits.back == tokens


async def test_a_client_gets_all_and_a_lease_is_for_one(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model, counts, places=8)) as r, AsyncClient(r.address) as client:
        request = Request(RawText("hi"), domain="medical", sampling=Sampling(seed=1), n=2)
        for direct in (False, True):
            async with client.stream(request, 10.0, direct=direct) as stream:
                found = await stream.answers()
            assert [each.text for each in found] == ["seed 1", "seed 2"]
            assert [each.usage.completion_tokens for each in found] == [3, 3]
        assert (await client.generate(request, 10.0)).text == "seed 1"


async def test_openais_client_gets_all(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", 4096)
    worker = FakeWorker("d", DENSE, model, counts, places=8)
    hi: Any = [{"role": "user", "content": "hi"}]
    async with http_door(tmp_path, worker) as door, door.client() as client:
        answered: Any = await client.chat.completions.create(model=door.model, messages=hi, n=2, seed=4)
        assert [(each.index, each.message.content, each.finish_reason) for each in answered.choices] == [
            (0, "seed 4", "stop"),
            (1, "seed 5", "stop"),
        ]
        assert (answered.usage.prompt_tokens, answered.usage.completion_tokens, answered.usage.total_tokens) == (
            2,
            6,
            8,
        )
        assert [each.sparsity["worker_id"] for each in answered.choices] == ["d", "d"]
        texts = {0: "", 1: ""}
        ends = []
        stream = await client.chat.completions.create(
            model=door.model, messages=hi, n=2, seed=4, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends += [choice.index] if choice.finish_reason else []
        assert (texts, sorted(ends)) == ({0: "seed 4", 1: "seed 5"}, [0, 1])
        assert chunk.usage is not None
        assert chunk.usage.completion_tokens == 6
        raw = await door.chat(n=2, stream=True)
        assert events(raw.text)[-1] == "data: [DONE]" or raw.text.endswith("data: [DONE]\n\n")
        assert raw.text.count("[DONE]") == 1
        plain = await client.completions.create(model=door.model, prompt="hi", n=2, seed=4)
        assert [each.text for each in plain.choices] == ["seed 4", "seed 5"]
        one = (await door.chat()).json()
        assert json.dumps(one["choices"]).count('"sparsity"') == 0
