"""Faults by which one request would hurt others (B1 to B8), through real routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from sparsity.v1 import inference_pb2
from sparsity_client.wire import AsyncWireClient, make_request
from sparsity_router.fleet.patience import Patience
from support.routers.chaos_fleet import fleet
from support.routers.rig import AGGRESSIVE, DENSE
from support.routers.router import Router, failure, until
from support.telling import tell
from support.tiny import SPECIAL, tiny_model, tiny_tokenizer
from support.workers.chaos_worker import worker_process
from support.workers.fake_worker import FakeWorker, answer, hang

pytestmark = pytest.mark.chaos


async def answered(router: Router, request: Any) -> str:
    return "".join([response.text async for response in router.inference.Generate(request, timeout=15.0)])


async def refused(router: Router, request: Any) -> Any:
    error = await failure(answered(router, request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return error


async def test_no_sampling_field_goes_past_what_engines_take(tmp_path: Path) -> None:
    async with fleet(tmp_path) as at:
        request = make_request("hi", domain="rag", temperature=1.0)
        request.sampling.top_k = 2**32 - 1
        error = await refused(at.router, request)
        assert error.details().startswith("sampling.top_k: ")
        assert not at.aggressive.received
    tell("B1", "temperature=1, top_k=4294967295", error.details(), at.others)


async def test_a_poisonous_request_ends_two_workers_and_no_third(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    with ExitStack() as stack:
        workers = [stack.enter_context(worker_process(model, f"w{number}")) for number in range(3)]
        places = tuple(worker.address for worker in workers)
        async with fleet(tmp_path, places=places, tiers="ma") as at:
            request = make_request("poison", domain="rag", max_tier=DENSE)
            error = await failure(answered(at.router, request))
            await asyncio.sleep(0.2)
            dead = sum(worker.poll() is not None for worker in workers)
            assert (error.code(), dead) == (grpc.StatusCode.ABORTED, 2)
            assert (await answered(at.router, make_request("hi", domain="code", max_tier=DENSE))).endswith("abc")
    came = f"{error.code().name}: {error.details()}; {dead} of 3 workers died, the next request is answered"
    tell("B1", "what ends every worker that it is sent to", came, at.others)


async def test_callers_who_share_a_request_id_are_all_answered(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    async with fleet(tmp_path, lease_key_file=tmp_path / "key") as at:

        def of(tenant: str, request_id: str) -> Any:
            request = make_request("y" * 120, domain="rag", tenant=tenant)
            request.request_id = request_id
            return request

        asked = [answered(at.router, of(tenant, "x")) for tenant in ("one", "two", "one")]
        route = at.router.inference.Route(inference_pb2.RouteRequest(request=of("two", "x.1")))
        *texts, routed = await asyncio.gather(*asked, route)
        assert texts == ["abc"] * 3
        assert routed.decision.decision_id
        sent = [request.request_id for request in at.aggressive.received]
        assert len(set(sent)) == 3
        assert not any(name.startswith("x") for name in sent)
    tell("B2", "one request id thrice, of two tenants, beside a Route of `x.1`", texts, at.others)


async def test_what_comes_with_a_prompt_is_bounded(tmp_path: Path) -> None:
    context = {
        "labels": {"labels": {f"l{number}": "v" for number in range(20_000)}},
        "label": {"labels": {"l": "v" * 2_000_000}},
        "flags": {"flags": ["f" * 10_000] * 65},
        "session": {"session": "s" * 2**20},
    }
    made = {name: make_request("hi", domain="rag", **fields) for name, fields in context.items()}
    made["ids"] = make_request([1] * 2**19, domain="rag")
    made["id"] = make_request("hi", domain="rag")
    made["id"].request_id = "x" * 2**20
    for name, priority in (("low", -5), ("high", 2**31 - 1)):
        made[name] = make_request("hi", domain="rag")
        made[name].priority = priority
    async with fleet(tmp_path) as at:
        came = [(await refused(at.router, request)).details().partition(":")[0] for request in made.values()]
        assert came == ["context.labels"] * 2 + [
            "context.flags", "context.session", "token_ids.ids", "request_id", "priority", "priority",
        ]  # fmt: skip
        assert not at.aggressive.received
    tell("B3", "labels, flags, ids, a session and priorities out of bounds", f"refused: {came}", at.others)


async def test_a_call_of_many_bytes_holds_up_nobody(tmp_path: Path) -> None:
    crowd = '{"a":[' + "[]," * 20_000 + "0]}"
    calls, tools = (make_request("", domain="rag") for _ in range(2))
    call = inference_pb2.ToolCall(id="c", name="f", arguments=crowd)
    calls.chat.messages.extend([inference_pb2.ChatMessage(role="assistant", content="x", tool_calls=[call] * 128)] * 4)
    tools.chat.messages.add(role="user", content="x")
    for number in range(128):
        tools.tools.add(name=f"t{number}", parameters=crowd)
    async with fleet(tmp_path) as at:
        came = [(await refused(at.router, request)).details()[:60] for request in (calls, tools)]
        assert [told.partition(":")[0] for told in came] == ["request", "tools"]
        assert not at.aggressive.received
    sent = f"{calls.ByteSize() >> 20} MiB of calls, then {tools.ByteSize() >> 20} MiB of tools"
    tell("B3", sent, f"refused: {came}", at.others)


async def test_a_long_prompt_takes_little_of_the_classifiers_memory(tmp_path: Path) -> None:
    text = "risk " * (2**22 // 5 - 1)
    # Megabytes are scanned on the machine's few processors, too.
    async with fleet(tmp_path, detect="undeclared", at_most=10.0) as at:

        async def ready() -> bool:
            return (await at.router.tier("", 300))[1] != "REASON_CLASSIFIER_FAILED"

        await until(ready, 60.0)
        embedding = max(psutil.Process().children(recursive=True), key=lambda child: child.memory_info().rss)
        before, most, took = embedding.memory_info().rss, 0, [0.0]

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, embedding.memory_info().rss)
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        for part in (text, text[:900_000], text):
            started = time.monotonic()
            # By its size it is read in full before it is found too long for the model.
            error = await refused(at.router, make_request(part))
            assert "tokens, the prompt is too long: this model's maximum context length is" in error.details()
            took.append(time.monotonic() - started)
        watching.cancel()
        grown = (most - before) / 2**20
        assert (max(took) < 5.0, grown < 150) == (True, True)
    came = f"refused after {max(took):.1f} s at most; the classifier's process took {grown:+.0f} MiB"
    tell("B4", f"undeclared prompts of {len(text) / 2**20:.1f} MiB and of 900 KB", came, at.others)


async def test_one_that_only_a_busy_worker_can_serve_holds_up_nobody(tmp_path: Path) -> None:
    model, go = tiny_model(tmp_path / "model"), asyncio.Event()

    async def held(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        await go.wait()
        async for response in answer(worker, request, context):
            yield response

    able = FakeWorker("able", AGGRESSIVE, model, places=1)
    plain = FakeWorker("plain", AGGRESSIVE, model, densifies=False, places=2)
    async with fleet(tmp_path, able, plain, queue_seconds=20.0) as at:
        able.behaviour = held
        # Denser workers are full, too.
        for worker in (at.dense, at.moderate, at.aggressive):
            worker.draining = True
        await asyncio.sleep(0.3)
        hard = [asyncio.create_task(at.router.generate(dense_reasoning=True)) for _ in range(2)]

        async def waits() -> bool:
            return bool(able.received)

        await until(waits)
        await asyncio.sleep(0.2)
        started = time.monotonic()
        others = await asyncio.gather(*(at.router.generate() for _ in range(5)))
        took = time.monotonic() - started
        served = [completion.worker_id for completion in others]
        assert (set(served), took < 5.0) == ({"plain"}, True)
        assert not any(task.done() for task in hard)
        go.set()
        assert [completion.worker_id for completion in await asyncio.gather(*hard)] == ["able"] * 2
    came = f"five plain ones are answered beside it within {took * 1000:.0f} ms"
    tell("B5", "dense reasoning that no idle worker can do, in line", came, at.others)


async def test_tenants_pay_for_what_they_used_and_once(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text(
        "tenants: {t: {tokens: 300/hour}, p: {requests: 3/hour}, r: {requests: 2/hour}}"
    )
    (tmp_path / "key").write_bytes(b"k" * 32)
    files = {"tenant_limits": tmp_path / "limits.yaml", "lease_key_file": tmp_path / "key"}

    async def counts(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        # Direct streams fall back to the relay, whose attempts are numbered.
        if not request.request_id.endswith(".1"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not here")
        async for response in answer(worker, request, context):
            if response.HasField("completion"):
                response.completion.usage.prompt_tokens, response.completion.usage.completion_tokens = 2, 3
            yield response

    async with fleet(tmp_path, **files) as at:
        at.aggressive.behaviour = counts
        # An answer may have 128 tokens and has 3.
        for _ in range(20):
            await at.router.generate(characters=2, tenant="t")
        async with AsyncWireClient(at.router.address) as client:
            for _ in range(3):
                stream = client.generate(make_request("hi", domain="rag", tenant="p"), 10.0, direct=True)
                assert "".join([response.text async for response in stream]) == "abc"
        for _ in range(2):
            await at.router.tier(tenant="r")
        error = await failure(at.router.tier(tenant="r"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    came = f"all answered; a third Explain of 2 an hour: {error.code().name}"
    tell("B6", "20 requests of 5 tokens on 300 an hour, 3 direct ones that fall back on 3", came, at.others)


async def test_no_phrase_hides_behind_characters(tmp_path: Path) -> None:
    hidden = {
        "no-break": "attorney\u2011client\u00a0privilege",
        "unseen": "attor\u00adney-cli\u200bent privilege",
        "full width": "\uff41ttorney-client privilege",
    }
    async with fleet(tmp_path) as at:
        flags = {name: (await explained(at.router, text)).signals.flags for name, text in hidden.items()}
        assert set(map(tuple, flags.values())) == {("legal",)}
    tell("B7", f"a phrase in other characters: {', '.join(hidden)}", "flagged legal", at.others)


async def explained(router: Router, text: str) -> Any:
    return await router.inference.Explain(inference_pb2.ExplainRequest(request=make_request(text, domain="rag")))


async def test_control_tokens_of_a_caller_stay_text(tmp_path: Path) -> None:
    (end,) = SPECIAL
    hidden = f"attorney-{end}client privilege"
    chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content=hidden)])
    ids = tiny_tokenizer().encode(hidden, add_special_tokens=False).ids
    control = tiny_tokenizer().token_to_id(end)
    async with fleet(tmp_path) as at:
        served = []
        for prompt in (hidden, chat, ids):
            async for response in at.router.inference.Generate(make_request(prompt, domain="rag"), timeout=10.0):
                if response.HasField("completion"):
                    served.append(inference_pb2.Reason.Name(response.completion.decision.reason))
        assert served == ["REASON_FLAGGED"] * 3
        text, rendered, _ = at.dense.received
        for request in (text, rendered):
            sent = list(request.prompt.ids) or tiny_tokenizer().encode(request.text.text).ids
            assert control not in sent
    tell("B7", f"`{hidden}` as text, chat and token ids", f"{served}, no control token sent", at.others)


async def test_megabytes_of_control_tokens_hold_up_nobody(tmp_path: Path) -> None:
    (end,) = SPECIAL
    text = end * (2**22 // len(end))
    # All of them are scanned on the machine's few processors, too.
    async with fleet(tmp_path, at_most=10.0) as at:
        request = inference_pb2.ExplainRequest(request=make_request(text, domain="rag"))
        asked = (failure(at.router.inference.Explain(request, timeout=120.0)) for _ in range(8))
        errors = await asyncio.gather(*asked)
        came = {error.details().partition(",")[0] for error in errors}
        assert all("tokens, the prompt is too long" in error.details() for error in errors)
    tell("B7", f"{len(text) / 2**20:.1f} MiB of `{end}` by {len(errors)} callers at once", came, at.others)


@pytest.mark.parametrize("after", [0, 2])
async def test_a_worker_that_goes_silent_is_given_up(tmp_path: Path, after: int) -> None:
    async def stalls(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(after):
            yield inference_pb2.GenerateResponse(text="x", token_ids=[1])
        async for response in hang(worker, request, context):
            yield response

    mute = FakeWorker("mute", AGGRESSIVE, tiny_model(tmp_path / "model"))
    patience = Patience(first=(60.0, 60.0, 0.5), between=(60.0, 60.0, 0.5))
    async with fleet(tmp_path, mute, patience=patience) as at:
        mute.behaviour = stalls
        started, got, ended = time.monotonic(), "", "OK"
        try:
            # No deadline: the caller would wait for ever.
            async with asyncio.timeout(20.0):
                async for response in at.router.inference.Generate(make_request("y" * 120, domain="rag")):
                    got += response.text
        except grpc.aio.AioRpcError as error:
            ended = f"{error.code().name}: {error.details()}"
        took = time.monotonic() - started
        assert took < 5.0
        assert (got, ended[:7]) == (("xx", "ABORTED") if after else ("abc", "OK"))
        assert mute.cancelled == 1
    sent = f"rag, its worker says nothing after {after} messages"
    tell("B8", sent, f"`{got}`, {ended}, after {took:.1f} s", at.others)
