"""The account of one request while its stream runs: who serves it, how long that takes, how many tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision
from sparsity_rpc.generation import operation_of
from sparsity_rpc.tracing import error_type
from sparsity_serving.metrics.metering import Times
from sparsity_serving.sampling import wanted_answers

from sparsity_router.decisions.decider import Decided
from sparsity_router.observing.observer import EndedRequest, Observer


class Account:
    """One request's account; the observer is told of it once, however its stream ends.

    Args:
        observer: told at the end; None tells nobody.
        decided: the request.
        request: as its caller sent it.
        started: when it came, by the monotonic clock.

    Attributes:
        used: tokens that its worker worked on, as far as it is known.
        answers: that it asks for.
    """

    def __init__(
        self, observer: Observer | None, decided: Decided, request: inference_pb2.GenerateRequest, started: float
    ) -> None:
        self.used = 0
        self.answers = wanted_answers(request)
        self._ended: list[inference_pb2.Completion] = []
        self._observer = observer
        self._decided = decided
        self._label = request.request_id
        self._operation = operation_of(request)
        # Of a stream that ends without an answer and without a failure, its caller has left.
        self._error = grpc.StatusCode.CANCELLED.name
        self._started = started
        self._first: float | None = None
        self._served: Decision | None = None
        self._policy: Decision | None = None
        self._is_told = False

    @property
    def decision(self) -> Decision:
        """What policy gave when the worker was asked that serves the request; while none does, what it gives now."""
        return self._policy or self._decided.review.decision

    @property
    def decided(self) -> Decided:
        """The decision as of now."""
        return self._decided

    def decided_anew(self, decided: Decided) -> None:
        """Goes on with another decision: nobody has served the request by the one before."""
        self._decided, self._served, self._policy = decided, None, None

    def add(
        self, response: inference_pb2.GenerateResponse, served: Decision, policy: Decision
    ) -> inference_pb2.Completion | None:
        """Adds a message before the caller has it, who may report an outcome at once; the completion once all came.

        Of several answers, the one that was served the sparsest speaks for all.
        """
        if self._served is None or served.tier >= self._served.tier:
            self._served, self._policy = served, policy
        if self._first is None and response.token_ids:
            self._first = time.monotonic() - self._started
        self.used = (self.used or self._decided.signals.min_tokens) + len(response.token_ids)
        if response.HasField("completion"):
            self._ended.append(response.completion)
        if not response.HasField("completion") or len(self._ended) < self.answers:
            return None
        whole = together(self._ended)
        self.used = whole.usage.prompt_tokens + whole.usage.completion_tokens or self.used
        self._error = ""
        self._tell(whole)
        return whole

    def left(self) -> None:
        """Its caller went away: who leaves before the first token has had the prompt read all the same."""
        self.used = self.used or self._decided.signals.min_tokens

    def failed(self, error: Exception) -> None:
        """Its stream ends with an error."""
        self._error = error_type(error)

    def close(self) -> None:
        """The stream has ended."""
        if not self._is_told:
            self._tell(None)

    def _tell(self, completion: inference_pb2.Completion | None) -> None:
        self._is_told = True
        if self._observer is not None:
            ended = EndedRequest(
                self._decided.decision_id,
                self._decided.review.signals,
                self.decision,
                self._served,
                completion,
                Times(self._first, time.monotonic() - self._started),
                self._label,
                self._operation,
                self._error,
            )
            self._observer.ended(ended)


def together(completions: Sequence[inference_pb2.Completion]) -> inference_pb2.Completion:
    """The completions of all answers of a request as one: their tokens in sum, the report of the least attention."""
    first = completions[0]
    if len(completions) == 1:
        return first
    whole = inference_pb2.Completion()
    whole.CopyFrom(min(completions, key=lambda each: each.sparsity.coverage if each.HasField("sparsity") else 1.0))
    whole.usage.CopyFrom(first.usage)
    whole.usage.completion_tokens = sum(each.usage.completion_tokens for each in completions)
    whole.usage.reasoning_tokens = sum(each.usage.reasoning_tokens for each in completions)
    return whole
