"""A blocking client of the router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import grpc
from opentelemetry import trace
from sparsity import telemetry
from sparsity.channels import MESSAGE_SIZE
from sparsity.status import to_error
from sparsity.v1 import inference_pb2, inference_pb2_grpc

_tracer = trace.get_tracer("sparsity.client")

Prompt = str | Sequence[int] | inference_pb2.ChatPrompt


def make_request(
    prompt: Prompt,
    *,
    domain: str | None = None,
    task: str | None = None,
    flags: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    tenant: str | None = None,
    session: str | None = None,
    max_tier: inference_pb2.Tier.ValueType | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
) -> inference_pb2.GenerateRequest:
    """A request from plain values; text is sent as it is, a sequence of numbers as token ids."""
    context = inference_pb2.RequestContext(
        domain=domain, task=task, flags=flags, labels=labels, tenant=tenant, session=session, max_tier=max_tier
    )
    sampling = inference_pb2.SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, stop=stop)
    request = inference_pb2.GenerateRequest(context=context, sampling=sampling)
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, inference_pb2.ChatPrompt):
        request.chat.CopyFrom(prompt)
    else:
        request.token_ids.ids.extend(prompt)
    return request


class Client:
    """One channel to a router at ``target``; safe to share between threads."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=MESSAGE_SIZE)
        self._inference: inference_pb2_grpc.InferenceServiceStub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        self.channel.close()

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout: float | None = None
    ) -> Iterator[inference_pb2.GenerateResponse]:
        """Streams a completion; the last response has `completion` set. Leaving early cancels it.

        Args:
            request: see :func:`make_request`.
            timeout: seconds for the whole stream.

        Raises:
            SparsityError: the kind tells what failed.
        """
        with _tracer.start_as_current_span("client.generate", kind=trace.SpanKind.CLIENT):
            call = self._inference.Generate(request, timeout=timeout, metadata=telemetry.outgoing())
            try:
                yield from call
            except grpc.RpcError as error:
                raise to_error(error) from error
            finally:
                call.cancel()

    def report_outcome(
        self,
        decision_id: str,
        score: float,
        metric: str,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = 5.0,
    ) -> None:
        """Reports how good an answer was.

        Args:
            decision_id: of the completion's decision.
            score: in [0, 1], by a measure of your own.
            metric: the measure, such as `exact_match`.
            labels: free.
            timeout: seconds.

        Raises:
            SparsityError: the kind tells what failed; NotFoundError when the decision was not sampled, or is a day old.
        """
        request = inference_pb2.ReportOutcomeRequest(decision_id=decision_id, score=score, metric=metric, labels=labels)
        try:
            self._inference.ReportOutcome(request, timeout=timeout, metadata=telemetry.outgoing())
        except grpc.RpcError as error:
            raise to_error(error) from error

    def explain(
        self, request: inference_pb2.GenerateRequest, timeout: float | None = 30.0
    ) -> inference_pb2.ExplainResponse:
        """The decision that :meth:`generate` would get now, and how it comes to be.

        Raises:
            SparsityError: the kind tells what failed.
        """
        with _tracer.start_as_current_span("client.explain", kind=trace.SpanKind.CLIENT):
            explain = inference_pb2.ExplainRequest(request=request)
            try:
                return self._inference.Explain(explain, timeout=timeout, metadata=telemetry.outgoing())
            except grpc.RpcError as error:
                raise to_error(error) from error
