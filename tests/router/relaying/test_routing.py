from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_client.wire import make_request
from sparsity_policies.matching.scan import ScanResult
from sparsity_policies.model import Tier
from sparsity_router.fleet.fleet import Admission
from sparsity_router.fleet.workers import State
from sparsity_router.relaying.dispatch import OvertakenError, dispatch
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.status import to_error
from support.routers.rig import AGGRESSIVE, DENSE, LONG, MODERATE, refusal, rig, until
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker, answer, break_off, fail, hang, say_nothing


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


def trio(model: Path, **aggressive: Any) -> tuple[FakeWorker, ...]:
    return (
        FakeWorker("d", DENSE, model),
        FakeWorker("m", MODERATE, model),
        FakeWorker("a", AGGRESSIVE, model, **aggressive),
    )


async def test_each_tier_goes_to_its_worker(model: Path) -> None:
    async with rig(model, *trio(model)) as r:
        for prompt, name in (("hi", "d"), ("y" * 60, "m"), (LONG, "a")):
            text, completion = await r.generate(prompt)
            assert (text, completion.worker_id) == ("abc", name)
            assert completion.decision.policy_tier == completion.decision.tier == completion.sparsity.tier
        assert len(completion.decision.decision_id) == 32


async def test_workers_are_told_where_reasoning_decodes_densely(model: Path) -> None:
    async with rig(model, *trio(model)) as r:
        _, plain = await r.generate(LONG)
        _, asked = await r.generate(LONG, dense_reasoning=True)
        told = [request.dense_reasoning for request in r.workers[2].received]
        assert told == [False, True] == [plain.decision.dense_reasoning, asked.decision.dense_reasoning]


async def test_a_worker_that_cannot_is_not_sent_reasoning_to_decode_densely(model: Path) -> None:
    async with rig(model, *trio(model, densifies=False)) as r:
        _, plain = await r.generate(LONG)
        _, asked = await r.generate(LONG, dense_reasoning=True)
        assert (plain.worker_id, asked.worker_id) == ("a", "m")
        assert asked.decision.reason == inference_pb2.REASON_TIER_UNAVAILABLE
        assert "whose workers could not decode reasoning densely" in asked.decision.explanation


async def test_one_of_a_tier_that_can_takes_the_reasoning(model: Path) -> None:
    able = FakeWorker("able", AGGRESSIVE, model, outstanding=10**6)
    async with rig(model, *trio(model, densifies=False), able) as r:
        assert {(await r.generate(LONG, dense_reasoning=True))[1].worker_id for _ in range(4)} == {"able"}


async def test_the_least_loaded_worker_is_taken(model: Path) -> None:
    busy = FakeWorker("busy", DENSE, model, outstanding=5000)
    idle = FakeWorker("idle", DENSE, model, outstanding=10)
    async with rig(model, busy, idle) as r:
        assert {(await r.generate("hi"))[1].worker_id for _ in range(5)} == {"idle"}


async def test_a_failed_worker_is_replaced_by_a_peer(model: Path) -> None:
    broken = FakeWorker("a1", AGGRESSIVE, model, behaviour=fail(grpc.StatusCode.UNAVAILABLE))
    peer = FakeWorker("a2", AGGRESSIVE, model, outstanding=10**6)
    async with rig(model, broken, peer, FakeWorker("d", DENSE, model)) as r:
        _, completion = await r.generate()
        assert completion.worker_id == "a2"
        assert completion.decision.reason == inference_pb2.REASON_LENGTH_BAND
        assert len(broken.received) == 1


async def test_then_by_a_denser_tier_and_the_reason_says_so(model: Path) -> None:
    async with rig(model, *trio(model, behaviour=fail(grpc.StatusCode.INTERNAL))) as r:
        _, completion = await r.generate()
        decision = completion.decision
        assert (completion.worker_id, decision.tier, decision.policy_tier) == ("m", MODERATE, AGGRESSIVE)
        assert decision.reason == inference_pb2.REASON_TIER_UNAVAILABLE


async def test_a_sparse_worker_without_proof_is_not_used(model: Path) -> None:
    async with rig(model, *trio(model, sparse_calls=0)) as r:
        _, completion = await r.generate()
        assert completion.worker_id == "m"
        assert completion.decision.reason == inference_pb2.REASON_MISSING_TELEMETRY


async def test_a_dense_decision_is_never_served_sparse(model: Path) -> None:
    full = FakeWorker("d", DENSE, model, requests=4)
    async with rig(model, full, FakeWorker("a", AGGRESSIVE, model)) as r:
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await full.stop()
        await until(lambda: r.fleet.workers[0].state is State.UNREACHABLE)
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert r.workers[1].received == []
        await full.start()


async def test_overload_of_a_worker_is_backpressure(model: Path) -> None:
    busy = fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with rig(model, FakeWorker("d", DENSE, model, behaviour=busy)) as r:
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # It is believed for a moment, and not held against the worker.
        assert r.fleet.workers[0].state is State.FULL
        await asyncio.sleep(0.3)
        assert r.fleet.workers[0].state is State.READY


async def test_nothing_is_replayed_after_the_first_token(model: Path) -> None:
    broken = fail(grpc.StatusCode.UNAVAILABLE, after=2)
    async with rig(model, *trio(model, behaviour=broken)) as r:
        error = await refusal(r.generate())
        assert error.code() is grpc.StatusCode.ABORTED
        assert "mid-stream" in error.details()
        assert r.workers[1].received == []


async def test_trailers_carry_the_decision_however_the_stream_ends(model: Path) -> None:
    for behaviour, code in ((answer, "OK"), (fail(grpc.StatusCode.UNAVAILABLE, after=1), "ABORTED")):
        async with rig(model, *trio(model, behaviour=behaviour)) as r:
            call = r.stub.Generate(make_request(LONG, domain="low"), timeout=10.0)
            with suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert (await call.code()).name == code
            told = dict(await call.trailing_metadata())
            assert len(told["sparsity-decision-id"]) == 32
            assert told["sparsity-tier"] == "aggressive"


async def test_a_deadline_mid_stream_is_not_held_against_the_worker(model: Path) -> None:
    late = fail(grpc.StatusCode.DEADLINE_EXCEEDED, after=2)
    async with rig(model, FakeWorker("d", DENSE, model, behaviour=late)) as r:
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert r.fleet.workers[0].state is State.READY


async def test_a_stream_without_a_completion_is_a_failure(model: Path) -> None:
    async with rig(model, *trio(model, behaviour=break_off)) as r:
        error = await refusal(r.generate())
        assert error.code() is grpc.StatusCode.ABORTED
    async with rig(model, *trio(model, behaviour=say_nothing)) as r:
        assert (await r.generate())[1].worker_id == "m"


async def test_a_sparse_worker_that_stops_reporting_is_passed_over(model: Path) -> None:
    async with rig(model, *trio(model, reports=False)) as r:
        assert (await r.generate())[1].worker_id == "a"
        _, completion = await r.generate()
        assert completion.worker_id == "m"
        assert completion.decision.reason == inference_pb2.REASON_MISSING_TELEMETRY


async def test_a_dense_worker_that_reports_pruning_is_taken_out_at_once(model: Path) -> None:
    liar = FakeWorker("d1", DENSE, model, density=0.9)
    async with rig(model, liar, FakeWorker("d2", DENSE, model, outstanding=10**6)) as r:
        assert (await r.generate("hi"))[1].worker_id == "d1"
        assert r.fleet.workers[0].state is State.UNPROVEN
        assert (await r.generate("hi"))[1].worker_id == "d2"
        assert "less attention than that" in r.fleet.workers[0].problem


async def test_a_worker_that_reports_a_sparser_tier_than_its_own_is_taken_out(model: Path) -> None:
    async def lie(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in answer(worker, request, context):
            response.completion.sparsity.tier = AGGRESSIVE if response.HasField("completion") else 0
            yield response

    async with rig(model, FakeWorker("d", DENSE, model), FakeWorker("m", MODERATE, model, behaviour=lie)) as r:
        assert [(await r.generate("y" * 60))[1].worker_id for _ in range(2)] == ["m", "d"]


async def test_a_dense_worker_whose_proof_shows_pruning_is_not_used(model: Path) -> None:
    async with rig(model, FakeWorker("d1", DENSE, model, sparse_calls=5), FakeWorker("d2", DENSE, model)) as r:
        assert {(await r.generate("hi"))[1].worker_id for _ in range(4)} == {"d2"}
        assert r.fleet.workers[0].problem == "its start-up proof shows sparse kernel calls"


async def test_a_worker_that_names_no_tier_is_not_used(model: Path) -> None:
    async with rig(model, FakeWorker("odd", 0, model), FakeWorker("d", DENSE, model)) as r:
        assert (await r.generate("hi"))[1].worker_id == "d"
        assert r.fleet.workers[0].state is State.INCOMPATIBLE


async def test_draining_and_foreign_workers_are_passed_over(model: Path) -> None:
    draining = FakeWorker("d1", DENSE, model, draining=True)
    foreign = FakeWorker("d2", DENSE, model, digest="other")
    async with rig(model, draining, foreign, FakeWorker("d3", DENSE, model, outstanding=99)) as r:
        assert (await r.generate("hi"))[1].worker_id == "d3"


async def test_a_cancel_reaches_the_worker(model: Path) -> None:
    worker = FakeWorker("d", DENSE, model, behaviour=hang)
    async with rig(model, worker) as r:
        call = r.stub.Generate(make_request("hi", domain="low"))
        await until(lambda: worker.received)
        call.cancel()
        await until(lambda: worker.cancelled)
        assert r.fleet.workers[0].outstanding_tokens == 0


async def test_a_deadline_reaches_the_worker(model: Path) -> None:
    worker = FakeWorker("d", DENSE, model, behaviour=hang)
    async with rig(model, worker) as r:
        error = await refusal(r.generate("hi", timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: worker.cancelled)
        worker.behaviour = answer
        assert (await r.generate("hi"))[0] == "abc"


async def test_a_stale_policy_goes_dense(model: Path) -> None:
    async with rig(model, *trio(model)) as r:
        r.policies.age = 1e6
        _, completion = await r.generate()
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_STALE_POLICY)


class Hasty:
    """A scanner that stops before the end."""

    def scan(self, readings: Sequence[bytes]) -> ScanResult:
        return ScanResult(frozenset(), frozenset(), len(readings[0]) - 1)


@pytest.mark.parametrize(
    "prompt",
    [LONG, list(range(1, 121)), inference_pb2.ChatPrompt(messages=[{"role": "user", "content": LONG}] * 2)],
    ids=["text", "token ids", "chat"],
)
async def test_what_was_not_scanned_to_the_end_goes_dense(model: Path, prompt: Any) -> None:
    async with rig(model, *trio(model)) as r:
        assert (await r.generate(prompt))[1].worker_id == "a"
        r.policies.snapshot = replace(r.policies.snapshot, scanner=cast(Any, Hasty()))
        _, completion = await r.generate(prompt)
        assert (completion.worker_id, completion.decision.reason) == ("d", inference_pb2.REASON_SCAN_TRUNCATED)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "text"),
        ("z" * 10_001, "text"),
        ("z" * 600, "prompt"),
        ([], "token_ids.ids"),
        ([300], "token_ids.ids"),
        (inference_pb2.ChatPrompt(), "chat.messages"),
        (
            inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="bot", content="x")]),
            "chat.messages[0].role",
        ),
        (
            inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="assistant", content="x")]),
            "chat.messages",
        ),
    ],
)
async def test_bad_prompts_name_the_field(model: Path, prompt: Any, field: str) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        error = to_error(await refusal(r.generate(prompt)))
        assert [violation.field for violation in error.violations] == [field]  # type: ignore[attr-defined]
        assert r.workers[0].received == []


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        # Field 1, the text, of two bytes that are not UTF-8.
        (b"\x0a\x02\xff\xfe", "text must be valid UTF-8"),
        # The same field, of fewer bytes than it says; and a field of a kind that does not exist.
        (b"\x0a\x05ab", "this is no protobuf message"),
        (b"\xff\xff\xff", "this is no protobuf message"),
    ],
)
async def test_malformed_messages_are_invalid_not_internal(model: Path, sent: bytes, told: str) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        generate = r.channel.unary_stream("/sparsity.v1.InferenceService/Generate")

        async def send() -> None:
            async for _ in generate(sent):
                pass

        error = await refusal(send())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert told in error.details()


@pytest.mark.parametrize("method", ["Generate", "Explain"])
async def test_a_call_that_ends_without_a_message_is_answered(model: Path, method: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        call = r.channel.stream_stream(f"/sparsity.v1.InferenceService/{method}")

        async def send() -> None:
            # Without a deadline it must not be waited for.
            async with asyncio.timeout(5.0):
                async for _ in call(nothing()):
                    pass

        error = await refusal(send())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == f"{method}Request: did not come: the call ended without a message"


async def test_who_left_before_the_answer_fills_no_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)):
        # As grpc writes down what it could not send, and what a handler raised.
        for error in (grpc.aio.InternalError("nobody is there"), ValueError("a fault of ours")):
            try:
                raise error
            except Exception:
                logging.getLogger("grpc._cython.cygrpc").exception("Unexpected")
    assert "a fault of ours" in caplog.text
    assert "nobody is there" not in caplog.text


async def test_methods_that_a_servicer_lacks_answer_unimplemented(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        error = await refusal(r.fleet.workers[0].stub.Drain(worker_pb2.DrainRequest()))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_explain_tells_every_step_and_what_would_change_it(model: Path) -> None:
    async with rig(model, FakeWorker("d", DENSE, model)) as r:
        request = make_request(LONG, domain="low", flags=["abuse"])
        answered = await r.stub.Explain(inference_pb2.ExplainRequest(request=request))
        assert answered.decision.tier == DENSE
        assert answered.decision.reason == inference_pb2.REASON_FLAGGED
        assert answered.signals.max_tokens == answered.signals.scanned_bytes == 120
        assert list(answered.signals.flags) == ["abuse"]
        assert any(step.matched for step in answered.steps)
        assert "without flags: aggressive" in answered.alternatives
        assert r.workers[0].received == []


async def test_a_worker_that_cancels_by_itself_has_failed(model: Path) -> None:
    broken = FakeWorker("a1", AGGRESSIVE, model, behaviour=fail(grpc.StatusCode.CANCELLED))
    async with rig(model, broken, FakeWorker("a2", AGGRESSIVE, model, outstanding=10**6)) as r:
        assert (await r.generate())[1].worker_id == "a2"
        assert len(broken.received) == 1
        assert r.fleet.workers[0].breakers[Tier.AGGRESSIVE]._failures == 1


@pytest.mark.parametrize("hedge_seconds", [0.0, 5.0])
async def test_an_answer_that_is_whole_stays_whole_however_its_stream_ends(model: Path, hedge_seconds: float) -> None:
    async def breaks(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in answer(worker, request, context):
            yield response
        await context.abort(grpc.StatusCode.INTERNAL, "after all was said")

    workers = trio(model, behaviour=breaks)
    async with rig(model, *workers, admission=Admission(queue_seconds=0.0, hedge_seconds=hedge_seconds)) as r:
        assert (await r.generate())[0] == "abc"
        assert [len(worker.received) for worker in workers] == [0, 0, 1]
        assert not r.fleet.workers[2].in_flight


@pytest.mark.parametrize("field", ["tier", "dense_reasoning"])
async def test_a_worker_that_came_back_with_another_profile_is_no_mistake_of_the_caller(
    model: Path, field: str
) -> None:
    async def refuses(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        raise InvalidRequestError.of(field, "is not served here")
        yield

    changed = FakeWorker("a1", AGGRESSIVE, model, behaviour=refuses)
    async with rig(model, changed, FakeWorker("a2", AGGRESSIVE, model, outstanding=10**6)) as r:
        assert (await r.generate(dense_reasoning=True))[1].worker_id == "a2"
        assert len(changed.received) == 1


async def test_who_came_back_with_another_model_since_it_was_picked_is_not_asked(tmp_path: Path) -> None:
    came_back = FakeWorker("d", DENSE, tiny_model(tmp_path))
    async with rig(tmp_path, came_back) as r:
        (worker,) = r.fleet.workers
        request = worker_pb2.WorkerServiceGenerateRequest(request_id="r")
        came_back.digest = "another"
        came_back.come_back(())
        await until(lambda: worker.state is State.INCOMPATIBLE)
        with pytest.raises(OvertakenError, match="no longer serves and proves dense") as caught:
            await anext(dispatch(worker, request, Tier.DENSE, 1, 5.0, (None, "")))
        assert (caught.value.by_worker, came_back.received) == (True, [])
