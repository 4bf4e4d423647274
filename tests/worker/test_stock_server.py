"""A server of stock SGLang, started from its package with nothing of ours, serves dense requests through a router."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from sparsity.v1 import inference_pb2
from sparsity_client.wire import make_request
from sparsity_router.fleet.workers import State
from support.ports import free_port
from support.routers.rig import DENSE, Rig, refusal, rig, until
from support.tiny import tiny_weights
from support.workers.fake_worker import FakeWorker
from transformers import AutoModelForCausalLM

_START_SECONDS = 800.0
_NEW = 12
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Wien"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Stock:
    """The process, on a port of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self._log, port = model, log, free_port()
        self.place = f"sglang+grpc://127.0.0.1:{port}"
        command = [
            sys.executable, "-m", "sglang.launch_server", "--smg-grpc-mode", "--model-path", str(model),
            "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--attention-backend", "torch_native",
            "--dtype", "float32", "--max-total-tokens", "8192", "--max-running-requests", "8", "--sleep-on-idle",
            # Its warm-up asks for tokens that a tiny model does not have.
            "--skip-server-warmup", "--disable-overlap-schedule", "--stream-interval", "1",
        ]  # fmt: skip
        # Plugins of ours stay out. Without a GPU its kernels are not there, and nothing calls them.
        (log.parent / "common_ops.py").touch()
        own = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        own["PYTHONPATH"] = str(log.parent)
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | own, start_new_session=True
            )

    def wait(self) -> None:
        """Until its port is open, which is after its engine has started."""
        deadline = time.monotonic() + _START_SECONDS
        with grpc.insecure_channel(self.place.removeprefix("sglang+grpc://")) as channel:
            while True:
                try:
                    grpc.channel_ready_future(channel).result(timeout=1.0)
                    return
                except grpc.FutureTimeoutError:
                    assert self.process.poll() is None, self.log()
                    assert time.monotonic() < deadline, self.log()

    def kill(self) -> None:
        """As a machine that is lost."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_weights(tmp_path_factory.mktemp("model"), positions=2048, head_dim=16)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


@pytest.fixture(scope="module")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    started = Stock(model, tmp_path_factory.mktemp("stock") / "stock.log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()


async def answers(r: Rig, request: Any) -> list[inference_pb2.GenerateResponse]:
    return [response async for response in r.stub.Generate(request, timeout=120.0)]


def medical(prompt: str = "What is the dose?", new: int = _NEW, **sampling: Any) -> inference_pb2.GenerateRequest:
    request = make_request(prompt, domain="medical", max_new_tokens=new)
    request.sampling.MergeFrom(inference_pb2.SamplingParams(**sampling))
    return request


def greedy(model: Path, prompt: list[int]) -> list[int]:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    out = plain.generate(
        ids, max_new_tokens=_NEW, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(ids)
    )
    return [int(token) for token in out[0, len(prompt) :]]


async def test_it_serves_what_is_medical_and_falls_back_when_it_is_killed(stock: Stock) -> None:
    """One test, in this order: a server takes a minute to start."""
    spare = FakeWorker("spare", DENSE, stock.model, places=0)
    # On a machine that is busy it may take seconds to say how it does.
    async with rig(stock.model, spare, places=(stock.place,), worker_seconds=6.0) as r:
        (worker,) = [worker for worker in r.fleet.workers if worker.target == stock.place]
        await until(lambda: worker.state is State.READY, 30.0)
        assert (worker.capabilities.backend, worker.tiers) == ("torch_native", {DENSE})  # type: ignore[union-attr]
        await _answers(r, stock.model)
        await _leaves(r, worker)
        call = r.stub.Generate(medical(new=1500, ignore_eos=True))
        assert (await call.read()).token_ids
        stock.kill()
        error = await refusal(_read(call))
        assert (error.code(), "failed mid-stream" in error.details()) == (grpc.StatusCode.ABORTED, True)
        spare.places = 4
        spare.come_back(())
        await until(lambda: worker.state is State.UNREACHABLE)

        async def served() -> str:
            return (await r.generate("What is the dose?", domain="medical"))[1].worker_id

        await until(lambda: len([w for w in r.fleet.workers if w.state is State.READY]) == 1)
        assert await served() == "spare"


async def _answers(r: Rig, model: Path) -> None:
    request = medical(ignore_eos=True)
    request.logprobs.top, request.logprobs.prompt = 2, True
    found = await answers(r, request)
    tokens = [token for each in found for token in each.token_ids]
    prompt = [place.token_id for place in found[0].prompt_logprobs]
    assert tokens == greedy(model, prompt)
    completion = found[-1].completion
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (len(prompt), _NEW)
    assert (completion.finish_reason, completion.HasField("sparsity")) == (inference_pb2.FINISH_REASON_LENGTH, False)
    assert "dense by the server's word" in completion.unreported
    told = [place for each in found for place in each.logprobs]
    assert [place.token_id for place in told] == tokens
    assert all(len(place.top) == 2 and place.top[0].logprob == place.logprob for place in told)
    held = await answers(
        r, medical(new=64, response_format=inference_pb2.ResponseFormat(json_schema=json.dumps(SCHEMA)))
    )
    assert json.loads("".join(each.text for each in held))["city"] in ("Rome", "Wien")
    assert held[-1].completion.finish_reason == inference_pb2.FINISH_REASON_STOP


async def _leaves(r: Rig, worker: Any) -> None:
    """A caller that leaves frees its place in the engine."""
    call = r.stub.Generate(medical(new=1900, ignore_eos=True))
    assert (await call.read()).token_ids
    await until(lambda: worker.load.requests == 1, 30.0)
    call.cancel()
    await until(lambda: worker.load.requests == 0, 30.0)


async def _read(call: Any) -> None:
    async with asyncio.timeout(30.0):
        while await call.read() is not grpc.aio.EOF:
            pass
