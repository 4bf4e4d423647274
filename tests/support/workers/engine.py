"""A real worker process on a tiny model with random weights: SGLang's CPU engine, our plugin and backend."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_rpc.channels import MAX_MESSAGE_BYTES
from support.ports import free_port
from support.workers.profiles import profile_document

_START_SECONDS = 800.0
_TESTS = Path(__file__).parents[2]


@dataclass
class Answer:
    """What one request got."""

    tokens: list[int]
    completion: inference_pb2.Completion


class Worker:
    """The process and a stub of it; starts without waiting.

    Its profiles are the ``documents``, else one with changes by ``sections``; it is ``asked`` for that tier.
    ``interpreted`` has it run the kernels for GPUs, in Triton's interpreter; ``program`` is another module to run.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        name: str,
        *options: str,
        tiers: str = "aggressive",
        documents: Sequence[dict[str, Any]] = (),
        asked: inference_pb2.Tier.ValueType = inference_pb2.TIER_UNSPECIFIED,
        interpreted: bool = False,
        program: str = "sparsity_worker",
        **sections: dict[str, Any],
    ) -> None:
        profiles = []
        for number, document in enumerate(documents or (profile_document(**sections),)):
            path = folder / f"{name}-{number}.yaml"
            path.write_text(yaml.safe_dump(document))
            profiles += ["--profile", str(path)]
        self.asked = asked
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / f"{name}.log"
        environment = dict(os.environ)
        if interpreted:
            program, environment["TRITON_INTERPRET"] = "support.workers.interpreted_worker", "1"
        if program.startswith("support."):
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_TESTS), environment.get("PYTHONPATH")]))
        command = [
            sys.executable, "-m", program, "--worker-id", name, "--tiers", tiers, "--model", str(model),
            *profiles, "--listen", self.address, "--max-total-tokens", "8192", "--max-requests", "8",
            "--dtype", "float32", "--threads", "1", *options,
        ]  # fmt: skip
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        limits = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", -1)]
        # Else a worker that took minutes to start is noticed up to two minutes later.
        limits.append(("grpc.max_reconnect_backoff_ms", 1_000))
        self.channel = grpc.insecure_channel(self.address, options=limits)
        self.stub = worker_pb2_grpc.WorkerServiceStub(self.channel)

    def wait(self) -> Worker:
        """Until it serves; it does so only after its start-up proof."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=1.0)
                return self
            except grpc.RpcError:
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.5)

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def stop(self) -> int:
        """Ends it; its exit code."""
        self.channel.close()
        self.process.terminate()
        return self.process.wait(60)

    def ask(
        self,
        prompt: list[int],
        new: int = 8,
        *,
        reasoning: bool = False,
        measured: bool = False,
        salt: str = "",
        tier: inference_pb2.Tier.ValueType | None = None,
        **sampling: Any,
    ) -> Answer:
        """One whole answer; ``salt`` keeps it from others' prefixes."""
        request = worker_request(
            prompt, new, reasoning=reasoning, salt=salt, tier=self.asked if tier is None else tier, **sampling
        )  # fmt: skip
        request.measure_coverage = measured
        stream = self.stub.Generate(request, timeout=120)
        messages = [message.response for message in stream]
        tokens = [token for message in messages for token in message.token_ids]
        return Answer(tokens, messages[-1].completion)

    def load(self) -> worker_pb2.WatchLoadResponse:
        """Its load now."""
        stream = self.stub.WatchLoad(worker_pb2.WatchLoadRequest(), timeout=20)
        found = next(iter(stream))
        stream.cancel()
        return found

    def emptied(self, seconds: float = 20.0) -> worker_pb2.WatchLoadResponse:
        """Its load once nothing is left, which the engine tells a moment after the last answer."""
        deadline = time.monotonic() + seconds
        while (now := self.load()).requests or now.kv_used_tokens:
            assert time.monotonic() < deadline, now
            time.sleep(0.2)
        return now


def worker_request(
    prompt: list[int],
    new: int,
    *,
    reasoning: bool = False,
    salt: str = "",
    tier: inference_pb2.Tier.ValueType = inference_pb2.TIER_UNSPECIFIED,
    **sampling: Any,
) -> worker_pb2.WorkerServiceGenerateRequest:
    """A request in a worker's terms."""
    return worker_pb2.WorkerServiceGenerateRequest(
        request_id=f"r{random.getrandbits(64):016x}",
        prompt=inference_pb2.TokenIds(ids=prompt),
        sampling=inference_pb2.SamplingParams(max_new_tokens=new, ignore_eos=True, **sampling),
        dense_reasoning=reasoning,
        cache_salt=salt or None,
        tier=tier,
    )


async def storm(
    address: str, requests: list[tuple[worker_pb2.WorkerServiceGenerateRequest, float | None]], at_once: int
) -> list[inference_pb2.Completion | None]:
    """Sends requests, ``at_once`` at a time, and cancels those with a time then; what each ended with."""
    gate = asyncio.Semaphore(at_once)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)

        async def one(request: worker_pb2.WorkerServiceGenerateRequest, cancel: float | None) -> Any:
            async with gate:
                call = stub.Generate(request, timeout=300)
                if cancel is not None:
                    asyncio.get_running_loop().call_later(cancel, call.cancel)
                last = None
                try:
                    async for message in call:
                        last = message.response.completion if message.response.HasField("completion") else None
                except asyncio.CancelledError:
                    assert cancel is not None
                return last

        return await asyncio.gather(*(one(request, cancel) for request, cancel in requests))
