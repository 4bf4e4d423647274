"""The echo worker: the real service, around an engine without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_router.prompts.chats.chat import read_chat
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.access.access import key_digest
from sparsity_serving.access.leases import sign
from sparsity_serving.engines import ECHO
from sparsity_worker.config import WorkerConfig
from sparsity_worker.echo.model import write_echo_model
from support.routers.rig import refusal
from support.workers.echo_worker import KEYS, answer, echo, request


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_echo_model(tmp_path / "echo")


def chat(model: Path, *turns: tuple[str, str]) -> str:
    """A conversation as a router renders it."""
    messages = [inference_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    chat = read_chat(inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(messages=messages)))
    return ModelTokenizer(model).render(chat)


async def test_it_says_what_it_is_and_claims_no_proof(model: Path) -> None:
    async with echo(model) as stub:
        own = await stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest())
        assert (own.engine.name, own.profile, own.backend) == ("echo", "echo", "none")
        assert own.tier == inference_pb2.TIER_MODERATE
        assert not own.HasField("proof")
        assert own.tokenizer_digest == ModelTokenizer(model).digest
        assert own.kv_capacity_tokens == 0
        assert own.model == model.name


async def test_it_goes_by_the_name_that_it_is_given(model: Path) -> None:
    async with echo(model, served_model_name="qwen-7b") as stub:
        assert (await stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest())).model == "qwen-7b"
        assert (await answer(stub, request("hi")))[1].model == "qwen-7b"


async def test_the_last_message_of_a_chat_comes_back(model: Path) -> None:
    asked = chat(model, ("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "drei Vögel"))
    async with echo(model) as stub:
        text, completion = await answer(stub, request(asked))
        assert text == "echo: drei Vögel"
        usage = completion.usage
        assert usage.completion_tokens == len(text.encode())
        assert usage.prompt_tokens == len(ModelTokenizer(model).encode(asked, special=False))
        assert 0 < usage.time_to_first_token.ToNanoseconds() <= usage.total_time.ToNanoseconds()
        assert completion.finish_reason == inference_pb2.FINISH_REASON_STOP
        assert completion.worker_id == "echo-1"


async def test_it_reports_no_attention_and_says_why(model: Path) -> None:
    for tier in ("dense", "moderate", "aggressive"):
        async with echo(model, tier) as stub:
            _, completion = await answer(stub, request("hi"))
            assert not completion.HasField("sparsity")
            assert completion.unreported.startswith("an echo: no model ran")


async def test_sampling_ends_it_as_it_ends_a_model(model: Path) -> None:
    async with echo(model) as stub:
        text, completion = await answer(stub, request("abcdef", 8))
        assert (text, completion.finish_reason) == ("echo: ab", inference_pb2.FINISH_REASON_LENGTH)
        text, completion = await answer(stub, request("ab", 12, ignore_eos=True))
        assert (text, completion.usage.completion_tokens) == ("echo: abecho", 12)
        stopped = request("abcdef")
        stopped.sampling.stop.append("cd")
        assert (await answer(stub, stopped))[0] == "echo: ab"
        # Whole characters only: the second byte of the umlaut is past the limit.
        text, completion = await answer(stub, request("aö", 8))
        assert text == "echo: a�"


async def test_what_it_cannot_serve_is_refused_as_a_model_refuses_it(model: Path) -> None:
    async with echo(model) as stub:
        wrong = request("hi")
        wrong.tier = inference_pb2.TIER_DENSE
        assert (await refusal(answer(stub, wrong))).code() is grpc.StatusCode.INVALID_ARGUMENT
        short = request("hi")
        short.text.min_tokens = 3
        assert (await refusal(answer(stub, short))).code() is grpc.StatusCode.OUT_OF_RANGE
        assert (await refusal(answer(stub, request("hi", temperature=9)))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_leases_hold_for_it_too(model: Path) -> None:
    async with echo(model, require_lease=True) as stub:
        asked = request("hi")
        assert (await refusal(answer(stub, asked))).code() is grpc.StatusCode.PERMISSION_DENIED
        asked.tier = inference_pb2.TIER_MODERATE
        asked.lease.CopyFrom(sign(KEYS, asked, "echo-1", "d"))
        assert (await answer(stub, asked))[0] == "echo: hi"
        assert (await refusal(answer(stub, asked))).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_it_tells_its_load_and_drains(model: Path) -> None:
    async with echo(model) as stub:
        loads = stub.WatchLoad(worker_pb2.WatchLoadRequest())
        assert (await loads.read()).requests == 0
        running = aiter(stub.Generate(request("x" * 500)))
        await anext(running)
        load = await loads.read()
        assert (load.requests, load.outstanding_tokens) == (1, 1500)
        drain = stub.Drain(worker_pb2.DrainRequest())
        while not (await loads.read()).draining:
            pass
        refused = request("hi")
        refused.request_id = "r2"
        assert (await refusal(answer(stub, refused))).code() is grpc.StatusCode.UNAVAILABLE
        # What is in flight is finished.
        received = [message.response async for message in running]
        assert received[-1].completion.usage.completion_tokens == 506
        assert (await drain).aborted_requests == 0


async def test_who_drains_it_must_be_an_operator(model: Path, tmp_path: Path) -> None:
    roles = (("ann", "operator"), ("app", "caller"), ("sre", "breaker"))
    lines = [f"  - {{name: {name}, key_sha256: {key_digest(name)}, roles: [{role}]}}" for name, role in roles]
    (tmp_path / "access.yaml").write_text("principals:\n" + "\n".join(lines))

    async def drains(stub: Any, key: str = "") -> str:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            await stub.Drain(worker_pb2.DrainRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            # It goes on.
            assert (await answer(stub, signed("hi")))[0] == "echo: hi"
            return error.code().name
        return "OK"

    def signed(text: str) -> worker_pb2.WorkerServiceGenerateRequest:
        asked = request(text)
        asked.tier = inference_pb2.TIER_MODERATE
        asked.lease.CopyFrom(sign(KEYS, asked, "echo-1", "d"))
        return asked

    async with echo(model, require_lease=True) as stub:
        for key in ("", "ann"):
            assert await drains(stub, key) == "PERMISSION_DENIED"
    async with echo(model, require_lease=True, access=tmp_path / "access.yaml") as stub:
        assert [await drains(stub, key) for key in ("", "nobody", "app", "sre", "ann")] == [
            "UNAUTHENTICATED",
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
            "PERMISSION_DENIED",
            "OK",
        ]


def test_a_profile_is_refused(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="--profile: an echo attends nothing"):
        WorkerConfig("w", ("moderate",), model, profiles=("generic-moderate",), engine=ECHO)


def test_it_loads_nothing_that_the_light_installation_lacks() -> None:
    heavy = {"torch", "sglang", "transformers", "triton", "sparse_kernels"}
    code = f"import sys, sparsity_worker.server, sparsity_worker.echo.model; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
