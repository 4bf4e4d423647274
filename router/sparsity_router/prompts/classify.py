"""Turns a request into signals and the token ids that a worker takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import metrics
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.decide import hangs_on_length
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.model import Risk, Tier
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.metrics.metering import CLASSIFY_SECONDS, histogram

from sparsity_router.prompts.classified import Classified, Opened, Prompt, Settled, scanned
from sparsity_router.prompts.domains import Score
from sparsity_router.prompts.lengths import SAMPLED_CHARACTERS, Interval, LengthModel
from sparsity_router.prompts.semantic import DetectionError, Detector
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_router.prompts.written import Bounds, Written, check_beside, read_written

# Below these a thread costs more than the work: of tokenizing, and of reading and scanning alone.
_INLINE_BYTES, _INLINE_SCAN_BYTES = 16_384, 262_144
_NO_SCORES: Mapping[str, Score] = {}
_meter = metrics.get_meter("sparsity.router")
_detecting = histogram(
    _meter, "sparsity.router.detect.duration", "s", "Detection of one domain by meaning.", CLASSIFY_SECONDS
)


class Classifier:
    """Finds out a prompt's domain and its length, as closely as the decision needs it, and scans all of it.

    Args:
        tokenizer: of the served model.
        max_prompt_bytes: a longer prompt is refused.
        detector: finds the domain of a prompt that declares none; None leaves it unknown.
        doubts_declared: whether the detector is asked about declared domains of less than high risk too.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        max_prompt_bytes: int,
        detector: Detector | None = None,
        *,
        doubts_declared: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._detector = detector
        self._doubts_declared = doubts_declared
        self._lengths = LengthModel(tokenizer)
        self._bounds = Bounds(tokenizer.vocabulary_size, tokenizer.context_length, max_prompt_bytes, tokenizer.control)

    def check(self, request: inference_pb2.GenerateRequest) -> None:
        """Checks what comes with the prompt, before anybody works on the request.

        Raises:
            InvalidRequestError: naming the field.
        """
        check_beside(request, self._bounds.context_length)

    async def classify(
        self,
        request: inference_pb2.GenerateRequest,
        snapshot: Snapshot,
        *,
        received: float = 0.0,
        policy_age: float = 0.0,
        request_key: str = "",
        session_tier: Tier | None = None,
        exact: bool = False,
    ) -> Classified:
        """Classifies one request; long prompts are worked on off the event loop.

        Args:
            request: as the caller sent it.
            snapshot: whose detection the prompt is scanned for.
            received: when it came, seconds since the epoch by the policy source's clock.
            policy_age: since the snapshot was last confirmed, seconds.
            request_key: unique to the request.
            session_tier: what the session's earlier requests got.
            exact: whether to count the tokens even where the decision does not hang on them.

        Raises:
            InvalidRequestError: naming the field.
        """
        context = request.context
        written = read_written(request, self._bounds)
        known: dict[str, Any] = {
            "received_at": received,
            "policy_age": policy_age,
            "request_key": request_key,
            "session_tier": session_tier,
            "dense_reasoning": context.dense_reasoning,
        }
        if self._detector is None or not self._is_in_question(request.context, snapshot):
            heavy = exact or written.kind == "token_ids"
            if written.size > (_INLINE_BYTES if heavy else _INLINE_SCAN_BYTES):
                return await asyncio.to_thread(self._read, written, request, snapshot, known, exact)
            opened = self._open(written, request, snapshot)
            signals = Settled(opened, context, known, _NO_SCORES, "", snapshot)
            if (bounded := self._bound(opened, signals, snapshot, exact)) is not None:
                return bounded
            if written.size > _INLINE_BYTES:
                return await asyncio.to_thread(self._count, opened, signals, snapshot, exact)
            return self._count(opened, signals, snapshot, exact)
        opened = await asyncio.to_thread(self._open, written, request, snapshot)
        scores, problem = _NO_SCORES, ""
        # An undeclared domain that the scan is certain of needs no classifier.
        if context.domain or not opened.scan.domains:
            started = time.monotonic()
            try:
                scores = await self._detector.detect(opened.text, snapshot)
            except DetectionError as error:
                problem = str(error)
            _detecting.record(time.monotonic() - started)
        return await asyncio.to_thread(self._measure, opened, context, snapshot, known, exact, scores, problem)

    def _is_in_question(self, context: inference_pb2.RequestContext, snapshot: Snapshot) -> bool:
        """Whether semantic detection could change the request's domain."""
        if context.flags:
            return False
        if not context.domain:
            return True
        declared = snapshot.policies.get(context.domain)
        return self._doubts_declared and declared is not None and declared.policy.risk is not Risk.HIGH

    def _read(
        self,
        written: Written,
        request: inference_pb2.GenerateRequest,
        snapshot: Snapshot,
        known: dict[str, Any],
        exact: bool,
    ) -> Classified:
        return self._measure(self._open(written, request, snapshot), request.context, snapshot, known, exact)

    def _measure(
        self,
        opened: Opened,
        context: inference_pb2.RequestContext,
        snapshot: Snapshot,
        known: dict[str, Any],
        exact: bool,
        scores: Mapping[str, Score] = _NO_SCORES,
        problem: str = "",
    ) -> Classified:
        """Settles the domain, then counts tokens as closely as the decision needs it."""
        signals = Settled(opened, context, known, scores, problem, snapshot)
        return self._bound(opened, signals, snapshot, exact) or self._count(opened, signals, snapshot, exact)

    def _bound(self, opened: Opened, signals: Settled, snapshot: Snapshot, exact: bool) -> Classified | None:
        """The request where its size alone, or the caller, tells its length closely enough."""
        if opened.prompt.ids:
            return self._counted(opened.prompt, signals)
        if exact:
            return None
        return self._within(self._lengths.bound(opened.prompt.text, opened.size), opened.prompt, signals, snapshot)

    def _count(self, opened: Opened, signals: Settled, snapshot: Snapshot, exact: bool) -> Classified:
        """The request with a length from a sample of it where that will do, else counted."""
        prompt = opened.prompt
        if len(prompt.text) >= SAMPLED_CHARACTERS:
            interval = self._lengths.sample(prompt.text, opened.size)
            if not exact and (sampled := self._within(interval, prompt, signals, snapshot)) is not None:
                return sampled
            if interval.low > 2 * self._tokenizer.context_length:
                # Counting takes a hundred times the prompt's memory; of one this long it would change nothing.
                raise self._too_long(f"about {(interval.low + interval.high) // 2}")
        ids = self._tokenizer.encode(prompt.text, special=prompt.special)
        return self._counted(Prompt(Interval(0, 0), ids), signals)

    def _within(self, interval: Interval, prompt: Prompt, signals: Settled, snapshot: Snapshot) -> Classified | None:
        """The request with an interval for a length, where the decision is the same all over it."""
        closer = signals(min_tokens=interval.low, max_tokens=interval.high)
        if interval.high < self._tokenizer.context_length and not hangs_on_length(closer, snapshot):
            return Classified(closer, prompt._replace(interval=interval), signals)
        return None

    def _counted(self, prompt: Prompt, signals: Settled) -> Classified:
        """The request with its exact token count."""
        count = len(prompt.ids)
        if not count:
            raise InvalidRequestError.of("prompt", "is empty once tokenized")
        if count >= self._tokenizer.context_length:
            raise self._too_long(str(count))
        exact = signals(min_tokens=count, max_tokens=count)
        return Classified(exact, prompt._replace(interval=Interval(count, count)), signals)

    def _too_long(self, count: str) -> InvalidRequestError:
        limit = self._tokenizer.context_length
        problem = f"has {count} tokens; the model takes {limit}, its answer included: shorten the prompt"
        return InvalidRequestError.of("prompt", problem)

    def _open(self, written: Written, request: inference_pb2.GenerateRequest, snapshot: Snapshot) -> Opened:
        """The prompt as far as it is known without counting, and the scan of all that the caller wrote."""
        unknown, (kind, text, data, size) = Interval(0, 0), written
        length = size
        if kind == "token_ids":
            prompt = Prompt(unknown, list(request.token_ids.ids))
            text = self._tokenizer.decode(prompt.ids)
            length = len(text.encode())
        elif kind == "text":
            prompt = Prompt(unknown, [], text, special=True)
        else:
            prompt = Prompt(unknown, [], self._tokenizer.render(request.chat))
            size = len(prompt.text.encode())
        return scanned(Opened(prompt, size, text, length), snapshot, data)
