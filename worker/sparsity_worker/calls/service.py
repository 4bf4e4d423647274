"""WorkerService over the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError, PermissionDeniedError
from sparsity_serving.access.access import Access
from sparsity_serving.access.leases import LeaseChecker
from sparsity_serving.access.principals import Role
from sparsity_serving.bounds import seconds_of
from sparsity_serving.metrics.metering import Times
from sparsity_serving.tokens.spelling import Spelling
from tokenizers import Tokenizer

from sparsity_worker.calls import tracing
from sparsity_worker.calls.answer import Answer
from sparsity_worker.calls.ended_leases import Brought, EndedLeases
from sparsity_worker.calls.identity import Identity, ServedTier
from sparsity_worker.calls.kv_use import KvUse
from sparsity_worker.calls.load import Load
from sparsity_worker.calls.parsers import Parsers
from sparsity_worker.calls.requests import check_size, engine_request, read_prompt
from sparsity_worker.calls.wishes import check_wishes, granted, parser_of
from sparsity_worker.calls.worker_metrics import WorkerMetrics
from sparsity_worker.coalescing import coalesced
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.engine.sglang_engine import Engine, EngineRequest

if TYPE_CHECKING:
    from sparsity_worker.engine.proof import Proof

Context = grpc.aio.ServicerContext[worker_pb2.WorkerServiceGenerateRequest, worker_pb2.WorkerServiceGenerateResponse]
# A longer text is tokenized in a thread.
_INLINE_CHARACTERS = 16_384


class WorkerService:
    """Serves one engine."""

    def __init__(
        self,
        engine: Engine | EchoEngine,
        tokenizer: Tokenizer,
        identity: Identity,
        load: Load,
        leases: LeaseChecker | None = None,
        metrics: WorkerMetrics | None = None,
        access: Access | None = None,
        parsers: Parsers | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        self._parsers = parsers
        self._identity = identity
        self._load = load
        self._kv_use = KvUse(engine.used_tokens, load)
        self._leases = leases
        self._ended_leases = EndedLeases()
        self._access = access or Access.load(None)
        self._metrics = metrics or WorkerMetrics(identity.config, identity.facts, load, engine.kv_tokens)

    async def Generate(
        self, request: worker_pb2.WorkerServiceGenerateRequest, context: Context
    ) -> AsyncIterator[worker_pb2.WorkerServiceGenerateResponse]:
        """Streams one completion; leaving early aborts it in the engine."""
        served = self._identity.asked(request.tier)
        claims = None
        if self._leases and (request.HasField("lease") or self._identity.config.require_lease):
            claims = self._leases.redeem(request)
        with self._ended_leases.noted(request, claims) as brought:
            async with aclosing(self._generate(request, context, served, brought)) as responses:
                async for response in responses:
                    brought.add(response)
                    yield worker_pb2.WorkerServiceGenerateResponse(response=response)

    async def _generate(
        self,
        request: worker_pb2.WorkerServiceGenerateRequest,
        context: Context,
        served: ServedTier,
        brought: Brought,
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        if request.dense_reasoning and not served.densifies:
            raise InvalidRequestError.of("dense_reasoning", f"{served.label} cannot; ask a denser worker")
        check_size(request, self._identity.facts)
        self._load.require_room()
        if len(request.text.text) > _INLINE_CHARACTERS:
            prompt = await asyncio.to_thread(read_prompt, request, self._tokenizer)
        else:
            prompt = read_prompt(request, self._tokenizer)
        measured = random.random() < self._identity.config.measured_share
        inner = engine_request(request, prompt, self._identity.facts, self._identity.markers, measured, served.name)
        await check_wishes(request, inner, self._engine)
        parser = parser_of(request, prompt, self._identity.markers, self._parsers)
        inner, ends = granted(inner, request, parser), self._identity.facts.ends
        answer = Answer(self._tokenizer, self._spelling, tuple(request.sampling.stop), parser, ends)
        tokens = len(inner.prompt) + inner.sampling["max_new_tokens"]
        with (
            self._load.admit(inner.rid, tokens, served.tier),
            tracing.generation(context, inner, self._identity, served, is_chat=request.HasField("chat")) as trace,
        ):
            brought.admitted(len(inner.prompt))
            started, steps = time.monotonic(), self._run(inner, answer, trace, served)
            try:
                async with aclosing(coalesced(steps, self._identity.config.coalescing)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                if not trace.is_finished:
                    self._metrics.failed(error, time.monotonic() - started, served.tier, trace.operation)
                raise

    async def _run(
        self, request: EngineRequest, answer: Answer, trace: tracing.Generation, served: ServedTier
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        started = time.monotonic()
        first, cached, account, finish = None, 0, b"", "stop"
        async with aclosing(self._engine.generate(request)) as steps:
            async for step in steps:
                if first is None:
                    first = time.monotonic() - started
                    trace.first_token()
                cached, account = step.cached_tokens, step.account or account
                finish = step.finish or finish
                for response in answer.add(step):
                    yield response
                if answer.stopped:
                    break
        report = self._engine.report(served.tier, served.label, account)
        times = Times(first, time.monotonic() - started)
        usage = inference_pb2.Usage(
            prompt_tokens=len(request.prompt),
            completion_tokens=answer.tokens,
            reasoning_tokens=answer.reasoning_tokens,
            cached_tokens=cached,
            time_to_first_token=_duration(first or 0.0),
            total_time=_duration(times.total),
        )
        completion = inference_pb2.Completion(
            finish_reason=answer.finish_reason(finish),
            model=self._identity.facts.name,
            usage=usage,
            sparsity=report,
            worker_id=self._identity.config.worker_id,
            unreported=self._engine.unreported,
        )
        trace.finished(completion)
        self._metrics.finished(completion, times, served.tier, trace.operation)
        yield inference_pb2.GenerateResponse(completion=completion)

    async def GetCapabilities(
        self,
        request: worker_pb2.GetCapabilitiesRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GetCapabilitiesRequest, worker_pb2.GetCapabilitiesResponse],
    ) -> worker_pb2.GetCapabilitiesResponse:
        """What this worker serves."""
        own, densest = self._identity, self._identity.densest
        # Where a model brings its attention, a probe alone tells of it, whichever tier's it was.
        proofs = [each.proof for each in own.tiers if each.proof]
        told = {**self._engine.setup, **next((proof.facts for proof in proofs if proof.facts), {})}
        return worker_pb2.GetCapabilitiesResponse(
            worker_id=own.config.worker_id,
            model=own.facts.name,
            tier=densest.tier,
            profile=densest.label,
            backend=self._engine.backend,
            context_length=own.facts.context_length,
            vocabulary_size=own.facts.vocabulary_size,
            max_requests=own.config.max_requests,
            kv_capacity_tokens=self._engine.kv_tokens,
            engine_version=self._engine.version,
            proof=_proof(densest.proof),
            tokenizer_digest=own.tokenizer_digest,
            reasoning_markers=own.config.reasoning_markers if own.markers else (),
            engine=worker_pb2.EngineFacts(
                name=self._engine.name,
                device=self._engine.device,
                dtype=self._engine.dtype,
                page_size=self._engine.page_size,
                tensor_parallel=own.config.tensor_parallel,
                crossover=densest.crossover,
                **told,
            ),
            sparse_from=densest.sparse_from,
            dense_reasoning=densest.densifies,
            tiers=[
                worker_pb2.TierCapabilities(
                    tier=each.tier,
                    profile=each.label,
                    proof=_proof(each.proof),
                    sparse_from=each.sparse_from,
                    dense_reasoning=each.densifies,
                    crossover=each.crossover,
                )
                for each in own.tiers
            ],
        )

    async def WatchLoad(
        self,
        request: worker_pb2.WatchLoadRequest,
        context: grpc.aio.ServicerContext[worker_pb2.WatchLoadRequest, worker_pb2.WatchLoadResponse],
    ) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        """The load at once and at every change."""
        interval = max(seconds_of("interval", request.interval) if request.HasField("interval") else 1.0, 0.05)
        told = self._ended_leases.lately()
        async for _ in self._load.changes(interval):
            kv_used_tokens = await self._kv_use.read(interval)
            ended, told = self._ended_leases.after(told)
            yield worker_pb2.WatchLoadResponse(
                requests=len(self._load.requests),
                outstanding_tokens=self._load.outstanding_tokens,
                draining=self._load.draining,
                kv_used_tokens=kv_used_tokens,
                finished_requests=self._load.finished,
                aborted_requests=self._load.aborted,
                tiers=[
                    worker_pb2.TierLoad(tier=each.tier, requests=requests, outstanding_tokens=tokens)
                    for each in self._identity.tiers
                    for requests, tokens in (self._load.at(each.tier),)
                    if requests
                ],
                ended_leases=ended,
            )

    async def Drain(
        self,
        request: worker_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainResponse],
    ) -> worker_pb2.DrainResponse:
        """Stops admitting and waits for the requests in flight.

        Raises:
            UnauthenticatedError: when the caller is not known.
            PermissionDeniedError: when it has not the role operator, or nobody has: whoever may stream from this worker
                itself, by a lease, may not end its service.
        """
        if self._identity.config.require_lease and not self._identity.config.access:
            raise PermissionDeniedError(
                "Drain needs the role operator, and no --access says whose it is; SIGTERM drains, too"
            )
        self._access.authenticate(context).require(Role.OPERATOR)
        self._load.drain()
        timeout = seconds_of("timeout", request.timeout) if request.HasField("timeout") else None
        await self._load.idle(timeout)
        return worker_pb2.DrainResponse(aborted_requests=len(self._load.requests))


def _proof(proof: Proof | None) -> worker_pb2.BackendProof | None:
    if proof is None:
        return None
    when = Timestamp()
    when.FromNanoseconds(int(proof.time * 1e9))
    return worker_pb2.BackendProof(
        prompt_tokens=proof.prompt_tokens,
        sparse_kernel_calls=proof.sparse_calls,
        kernel_calls=proof.calls,
        density=proof.density,
        time=when,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
