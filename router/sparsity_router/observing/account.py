"""The account of one request while its stream runs: who serves it, how long that takes, how many tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Decision, Tier
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
        self._ended: list[tuple[inference_pb2.Completion, Tier]] = []
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
    def served(self) -> Decision:
        """The decision as it was served; while nobody serves the request, what policy gives it."""
        return self._served or self.decision

    @property
    def decided(self) -> Decided:
        """The decision as of now."""
        return self._decided

    def decided_anew(self, decided: Decided) -> None:
        """Goes on with another decision; another answer may have been served by the one before."""
        self._decided = decided

    def add(
        self, response: inference_pb2.GenerateResponse, served: Decision, policy: Decision
    ) -> inference_pb2.Completion | None:
        """Adds a message before the caller has it, who may report an outcome at once; the completion once all came.

        Of several answers, the one that was served sparser than policy gave it, or else the sparsest, speaks for all.
        """
        if self._served is None or _sparser(served, policy) >= _sparser(self._served, self.decision):
            self._served, self._policy = served, policy
        if self._first is None and response.token_ids:
            self._first = time.monotonic() - self._started
        self.used = (self.used or self._decided.signals.min_tokens) + len(response.token_ids)
        if response.HasField("completion"):
            self._ended.append((response.completion, served.tier))
        if not response.HasField("completion") or len(self._ended) < self.answers:
            return None
        whole = together(self._ended, self.served.tier)
        self.used = whole.usage.prompt_tokens + whole.usage.completion_tokens or self.used
        self._error = ""
        self._tell(whole)
        return whole

    def left(self, *, is_read: bool) -> None:
        """Its caller went away: where a worker has it, the prompt is read all the same before the first token."""
        self.used = self.used or (self._decided.signals.min_tokens if is_read else 0)

    def failed(self, error: Exception) -> None:
        """Its stream ends with an error."""
        self._error = error_type(error)

    def close(self) -> None:
        """The stream has ended; what was answered in whole before it did is told of."""
        if not self._is_told:
            self._tell(together(self._ended, self.served.tier) if self._ended else None)

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


def _sparser(served: Decision, policy: Decision) -> tuple[int, Tier]:
    """What answers are told by: how far the tier is beyond policy's, then how sparse it is."""
    return served.tier - policy.tier, served.tier


def together(answers: Sequence[tuple[inference_pb2.Completion, Tier]], tier: Tier) -> inference_pb2.Completion:
    """The completions of all answers of a request as one.

    Args:
        answers: each with the tier that served it.
        tier: that speaks for all.

    Returns:
        Their tokens in sum, and the report of the least attention at ``tier``; none where no answer at it has ended.
    """

    def attention(answer: tuple[inference_pb2.Completion, Tier]) -> tuple[bool, float]:
        completion, at = answer
        return at is not tier, completion.sparsity.coverage if completion.HasField("sparsity") else 1.0

    first, _ = answers[0]
    least, at = min(answers, key=attention)
    if len(answers) == 1 and at is tier:
        return first
    whole = inference_pb2.Completion()
    whole.CopyFrom(least)
    if at is not tier:
        whole.ClearField("sparsity")
    whole.usage.CopyFrom(first.usage)
    whole.usage.completion_tokens = sum(each.usage.completion_tokens for each, _ in answers)
    whole.usage.reasoning_tokens = sum(each.usage.reasoning_tokens for each, _ in answers)
    return whole
