"""One worker process, and what requests to it take."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_rpc.channels import MAX_MESSAGE_BYTES
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tls import open_aio_channel
from sparsity_serving.addresses import free_port
from sparsity_worker.keys import COMPILED

_OURS = "sparse_kernels."
_START_SECONDS, _ANSWER_SECONDS = 1800.0, 900.0


class Taken(NamedTuple):
    """What one request took.

    Attributes:
        first: seconds to the first token.
        total: seconds to the last one.
        answer: tokens that were generated.
        report: what was attended.
    """

    first: float
    total: float
    answer: tuple[int, ...]
    report: inference_pb2.SparsityReport

    @property
    def tokens(self) -> int:
        """How many were generated."""
        return len(self.answer)

    def after(self, waited: float) -> Taken:
        """The same for whoever waited so many seconds before it began."""
        return self._replace(first=self.first + waited, total=self.total + waited)

    @property
    def per_token(self) -> float:
        """Seconds a token after the first; 0 for one token."""
        return (self.total - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0


def prompt_of(length: int, vocabulary: int, seed: int) -> list[int]:
    """Random tokens, the same for every tier."""
    draw = random.Random(f"{length} {seed}")
    return [draw.randrange(vocabulary) for _ in range(length)]


class Worker:
    """A worker process, from entering to leaving.

    Args:
        tier: that it serves, or several with commas between.
        model: folder.
        log: file that its output goes to.
        options: more of its command line.
        environment: more of its environment.
    """

    def __init__(
        self, tier: str, model: Path, log: Path, options: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.tier = tier
        self._log = log
        self._environment = os.environ | (environment or {})
        self.address = f"127.0.0.1:{free_port()}"
        self._command = [
            sys.executable, "-m", "sparsity_worker", "--worker-id", f"bench-{tier}", "--tiers", tier,
            "--model", str(model), "--listen", self.address, "--measured-share", "0", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.at: str | None = None
        """The tier that requests are sent at which name none; the worker's densest without it."""
        self.started = 0.0
        self._told_at_start = 0
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    @property
    def tiers(self) -> Sequence[str]:
        """That it serves."""
        return self.tier.split(",")

    async def __aenter__(self) -> Self:
        """Starts it and waits until it serves, which it does only after its start-up proof.

        Raises:
            ConfigurationError: when it ends before, with the end of its output.
        """
        began, self._process = time.monotonic(), self._spawn()
        limits = (("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", -1))
        self._channel = open_aio_channel(self.address, None, limits)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(grpc.aio.AioRpcError):
                await self.capabilities()
                self.started = time.monotonic() - began
                self._told_at_start = len(self._lines())
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                await self.__aexit__(None, None, None)
                raise ConfigurationError(f"the {self.tier} worker did not start: {' | '.join(self.told())}")
            await asyncio.sleep(0.5)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        if self._channel is not None:
            await self._channel.close()
        if self._process is not None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait, 120)

    def told(self, lines: int = 5) -> list[str]:
        """The end of its output."""
        return self._lines()[-lines:]

    def _lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    def compiled(self) -> list[str]:
        """Kernels of ours that it compiled, or loaded, while it served."""
        since = self._lines()[self._told_at_start :]
        return [line[line.index(_OURS) :] for line in since if _OURS in line and COMPILED in line]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(self._log, "wb") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    async def capabilities(self) -> worker_pb2.GetCapabilitiesResponse:
        """What it says of itself."""
        found: worker_pb2.GetCapabilitiesResponse = await self._stub.GetCapabilities(
            worker_pb2.GetCapabilitiesRequest(), timeout=10.0
        )
        return found

    async def held(self) -> tuple[int, int]:
        """Requests in flight, and tokens that they hold of the KV cache."""
        stream = self._stub.WatchLoad(worker_pb2.WatchLoadRequest(), timeout=20.0)
        async for load in stream:
            stream.cancel()
            return int(load.requests), int(load.kv_used_tokens)
        return 0, 0

    async def ask(
        self,
        prompt: Sequence[int],
        new: int,
        salt: str | None = None,
        sampling: inference_pb2.SamplingParams | None = None,
        tier: str | None = None,
    ) -> Taken:
        """One request to its full length, greedy unless told; prompts of one ``salt`` share a prefix cache."""
        started, first = time.perf_counter(), 0.0
        tokens: list[int] = []
        report = inference_pb2.SparsityReport()
        async for message in self._stub.Generate(
            _request(prompt, new, salt, sampling, tier or self.at), timeout=_ANSWER_SECONDS
        ):
            answer = message.response
            if answer.token_ids and not first:
                first = time.perf_counter() - started
            tokens += answer.token_ids
            if answer.HasField("completion"):
                report = answer.completion.sparsity
        return Taken(first, time.perf_counter() - started, tuple(tokens), report)

    async def ask_and_leave(self, prompt: Sequence[int], seconds: float, salt: str, tier: str | None = None) -> None:
        """One request that is cancelled after ``seconds``."""
        call = self._stub.Generate(_request(prompt, 8, salt, tier=tier or self.at), timeout=_ANSWER_SECONDS)
        await asyncio.sleep(seconds)
        call.cancel()


def _request(
    prompt: Sequence[int],
    new: int,
    salt: str | None,
    sampling: inference_pb2.SamplingParams | None = None,
    tier: str | None = None,
) -> worker_pb2.WorkerServiceGenerateRequest:
    whole = inference_pb2.SamplingParams(max_new_tokens=new, ignore_eos=True)
    if sampling is not None:
        whole.MergeFrom(sampling)
    return worker_pb2.WorkerServiceGenerateRequest(
        request_id=uuid.uuid4().hex,
        prompt=inference_pb2.TokenIds(ids=prompt),
        sampling=whole,
        cache_salt=salt or uuid.uuid4().hex,
        tier=inference_pb2.Tier.Value(f"TIER_{(tier or 'unspecified').upper()}"),
    )
