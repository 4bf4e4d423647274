"""Running workers as subjects: the tasks with questions, on the engine and machine that will serve them."""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import replace

import grpc
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_rpc.errors import ConfigurationError, UnavailableError
from sparsity_rpc.status import to_error
from sparsity_rpc.tls import open_channel
from sparsity_serving.engines import SGLANG, engine_of

from sparsity_quality.runs.results import Cell
from sparsity_quality.runs.suite import scored
from sparsity_quality.tasks.case import Case, Encode, cut

_TIMEOUT_SECONDS = 600.0


class Worker:
    """One worker; its tier is asked for, not assumed.

    Args:
        target: `host:port`.
        encode: its model's tokenizer.
        digest: SHA-256 of that tokenizer's file, in hexadecimal.

    Raises:
        ConfigurationError: when it serves another tokenizer, or no model.
        SparsityError: when it does not answer.
    """

    def __init__(self, target: str, encode: Encode, digest: str) -> None:
        self._encode = encode
        self._channel = open_channel(target, None)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        try:
            own = self._stub.GetCapabilities(worker_pb2.GetCapabilitiesRequest(), timeout=30.0)
        except grpc.RpcError as error:
            raise to_error(error) from error
        if own.tokenizer_digest != digest:
            raise ConfigurationError(f"--worker: {target} serves {own.model} with another tokenizer than --model has")
        if engine_of(own) != SGLANG:
            raise ConfigurationError(f"--worker: {target} answers by {engine_of(own)}: there is no model to judge")
        tier = inference_pb2.Tier.Name(own.tier).removeprefix("TIER_").lower()
        self.context_length, self.tier = int(own.context_length), tier
        self.families = None
        self.kind = "dense" if tier == "dense" else "profile"
        self.name = "dense" if tier == "dense" else f"{tier} ({own.profile})"
        of = f"worker/{tier}/{own.model}/{own.profile}/{own.backend}/{own.engine_version}"
        self.digest = hashlib.sha256(of.encode()).hexdigest()[:16]

    def measure(self, case: Case, blank: Cell) -> Cell:
        """Sends every question after its context; the worker's prefix cache may hold the context.

        Raises:
            SparsityError: as the worker failed; UnavailableError when it ended without a completion.
        """
        answers, densities, coverages, started = [], [], [], time.monotonic()
        first = 0.0
        for question in case.questions:
            request = worker_pb2.WorkerServiceGenerateRequest(
                request_id=f"quality-{uuid.uuid4().hex}",
                prompt=inference_pb2.TokenIds(ids=[*case.tokens, *self._encode(question.prompt)]),
                sampling=inference_pb2.SamplingParams(max_new_tokens=question.new_tokens),
            )
            text, ended = "", False
            try:
                for message in self._stub.Generate(request, timeout=_TIMEOUT_SECONDS):
                    first = first or time.monotonic() - started
                    text += message.response.text
                    if message.response.HasField("completion"):
                        ended, report = True, message.response.completion.sparsity
                        densities.append(report.prefill_density or 1.0)
                        coverages.append(report.coverage or 1.0)
            except grpc.RpcError as error:
                raise to_error(error) from error
            if not ended:
                raise UnavailableError(f"{self.name}: the stream ended without a completion; run again to go on")
            answers.append(cut(text, question.stop))
        return replace(
            blank,
            # With the context cached, a report speaks of the question alone: the first one speaks of all.
            density=densities[0], coverage=coverages[0], seconds=first,
            scores=scored(case, answers), answers=answers,
        )  # fmt: skip
