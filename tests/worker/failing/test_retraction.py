"""A real engine whose scheduler retracts requests all the time, as it does when the KV cache is full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from sparsity.v1 import inference_pb2, worker_pb2_grpc
from support.tiny import tiny_weights
from support.workers.engine import Answer, Worker, worker_request

pytestmark = pytest.mark.timeout(600)
Tier = inference_pb2.Tier.ValueType
DENSE, AGGRESSIVE = inference_pb2.TIER_DENSE, inference_pb2.TIER_AGGRESSIVE
NEW, LENGTHS = 24, (40, 300, 420, 700)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    # Every third step, of those that decode together.
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    model, options = tiny_weights(tmp_path / "model"), ("--measured-share", "0")
    started = Worker(model, tmp_path, "retracts", *options, tiers="dense,aggressive")
    try:
        yield started.wait()
    finally:
        started.channel.close()
        started.process.kill()
        started.process.wait(60)


async def together(worker: Worker, prompts: list[list[int]], tier: Tier) -> list[Answer]:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)

        async def one(prompt: list[int]) -> Answer:
            call = stub.Generate(worker_request(prompt, NEW, salt=f"together {tier}", tier=tier), timeout=300)
            messages = [message.response async for message in call]
            tokens = [token for message in messages for token in message.token_ids]
            return Answer(tokens, messages[-1].completion)

        return await asyncio.gather(*map(one, prompts))


def test_requests_that_are_retracted_are_answered_and_leave_nothing(worker: Worker) -> None:
    prompts = [[7 + place * (31 + number) % 200 for place in range(length)] for number, length in enumerate(LENGTHS)]
    alone = [worker.ask(prompt, NEW, salt="alone", tier=DENSE) for prompt in prompts]
    dense, sparse = (asyncio.run(together(worker, prompts, tier)) for tier in (DENSE, AGGRESSIVE))
    assert worker.log().count("retract") > 0
    # What was generated is read again as a prompt, which is the same where everything is attended.
    assert [answer.tokens for answer in dense] == [answer.tokens for answer in alone]
    for answers, tier in ((dense, DENSE), (sparse, AGGRESSIVE)):
        for prompt, answer in zip(prompts, answers, strict=True):
            usage, report = answer.completion.usage, answer.completion.sparsity
            assert (len(answer.tokens), usage.completion_tokens, usage.prompt_tokens) == (NEW, NEW, len(prompt))
            pruned = tier == AGGRESSIVE and len(prompt) >= 256
            assert (0 < report.prefill_density < 1) if pruned else report.prefill_density == 1
            assert 0 < report.decode_density <= 1
    worker.emptied()
