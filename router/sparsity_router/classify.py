"""Turns a request into signals and the token ids that a worker takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from sparsity.errors import InvalidRequestError
from sparsity.v1 import inference_pb2
from sparsity_policies.decide import hangs_on_length
from sparsity_policies.model import Risk, Signals, Tier
from sparsity_policies.scan import ScanResult
from sparsity_policies.snapshot import Snapshot

from sparsity_router.domains import Found, Score, resolve
from sparsity_router.lengths import SAMPLED_CHARACTERS, Interval, LengthModel
from sparsity_router.semantic import DetectionError, Detector
from sparsity_router.tokens import ModelTokenizer

# Below this a thread costs more than the work.
_INLINE_BYTES = 16_384
MAX_NAME = 256
_NO_SCORES: Mapping[str, Score] = {}


class Prompt(NamedTuple):
    """A prompt as a worker takes it: in token ids, or as text where they were not needed to decide.

    Attributes:
        interval: tokens, at least and at most.
        ids: token ids; empty where they were not counted.
        text: what is to be tokenized.
        special: whether the model puts something around it.
    """

    interval: Interval
    ids: list[int]
    text: str = ""
    special: bool = False


class _Opened(NamedTuple):
    """A prompt, what its caller wrote, what the scan of that found, and what kept the scan from an answer."""

    prompt: Prompt
    text: str
    scan: ScanResult
    problem: str


class Classified(NamedTuple):
    """A request, understood.

    Attributes:
        signals: what policy decides from.
        prompt: for the worker.
    """

    signals: Signals
    prompt: Prompt


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
        self._max_prompt_bytes = max_prompt_bytes

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
        _check_context(context)
        size = self._check_prompt(request)
        known: dict[str, Any] = {
            "received_at": received,
            "policy_age": policy_age,
            "request_key": request_key,
            "session_tier": session_tier,
        }
        if self._detector is None or not self._is_in_question(request.context, snapshot):
            if size > _INLINE_BYTES:
                return await asyncio.to_thread(self._read, request, snapshot, known, exact)
            return self._read(request, snapshot, known, exact)
        opened = await asyncio.to_thread(self._open, request, snapshot)
        scores, problem = _NO_SCORES, ""
        # An undeclared domain that the scan is certain of needs no classifier.
        if context.domain or not opened.scan.domains:
            try:
                scores = await self._detector.detect(opened.text, snapshot)
            except DetectionError as error:
                problem = str(error)
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
        self, request: inference_pb2.GenerateRequest, snapshot: Snapshot, known: dict[str, Any], exact: bool
    ) -> Classified:
        return self._measure(self._open(request, snapshot), request.context, snapshot, known, exact)

    def _measure(
        self,
        opened: _Opened,
        context: inference_pb2.RequestContext,
        snapshot: Snapshot,
        known: dict[str, Any],
        exact: bool,
        scores: Mapping[str, Score] = _NO_SCORES,
        problem: str = "",
    ) -> Classified:
        """Settles the domain, then counts tokens as closely as the decision needs it."""
        prompt, scan = opened.prompt, opened.scan
        found = resolve(context.domain, scan.domains, scores, snapshot)
        # What was declared holds, when nothing speaks against it.
        problem = opened.problem or ("" if found.domain else problem)
        signals = _signals(context, scan, found, problem, known)
        if prompt.ids:
            return self._counted(prompt, signals)
        estimates = [] if exact else [self._lengths.bound]
        if len(prompt.text) >= SAMPLED_CHARACTERS and not exact:
            estimates.append(self._lengths.sample)
        size = len(prompt.text.encode("utf-8", "surrogatepass"))
        for estimate in estimates:
            interval = estimate(prompt.text, size)
            closer = signals(min_tokens=interval.low, max_tokens=interval.high)
            if interval.high < self._tokenizer.context_length and not hangs_on_length(closer, snapshot):
                return Classified(closer, prompt._replace(interval=interval))
        ids = self._tokenizer.encode(prompt.text, special=prompt.special)
        return self._counted(Prompt(Interval(0, 0), ids), signals)

    def _counted(self, prompt: Prompt, signals: Callable[..., Signals]) -> Classified:
        """The request with its exact token count."""
        count = len(prompt.ids)
        if not count:
            raise InvalidRequestError.of("prompt", "is empty once tokenized")
        if count >= self._tokenizer.context_length:
            limit = self._tokenizer.context_length
            problem = f"has {count} tokens; the model takes {limit}, its answer included: shorten the prompt"
            raise InvalidRequestError.of("prompt", problem)
        return Classified(signals(min_tokens=count, max_tokens=count), prompt._replace(interval=Interval(count, count)))

    def _check_prompt(self, request: inference_pb2.GenerateRequest) -> int:
        """Bytes of the prompt, once it is known to be sane."""
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequestError.of("prompt", "is missing; set text, chat or token_ids")
        if kind == "token_ids":
            ids = request.token_ids.ids
            if not ids:
                raise InvalidRequestError.of("token_ids.ids", "is empty")
            if (highest := max(ids)) >= self._tokenizer.vocabulary_size:
                size = self._tokenizer.vocabulary_size
                raise InvalidRequestError.of("token_ids.ids", f"{highest} is not below the vocabulary size {size}")
            return 4 * len(ids)
        if kind == "text":
            size = len(request.text.encode())
            field, empty = "text", not request.text
        else:
            size = sum(len(message.content.encode()) for message in request.chat.messages)
            field, empty = "chat.messages", not any(message.content for message in request.chat.messages)
        if empty:
            raise InvalidRequestError.of(field, "is empty")
        if size > self._max_prompt_bytes:
            problem = f"is {size} bytes long; this router takes {self._max_prompt_bytes}: shorten the prompt"
            raise InvalidRequestError.of(field, problem)
        return size

    def _open(self, request: inference_pb2.GenerateRequest, snapshot: Snapshot) -> _Opened:
        """The prompt as far as it is known without counting, and the scan of all that the caller wrote."""
        kind, unknown = request.WhichOneof("prompt"), Interval(0, 0)
        if kind == "token_ids":
            prompt = Prompt(unknown, list(request.token_ids.ids))
            text = self._tokenizer.decode(prompt.ids)
        elif kind == "text":
            text = request.text
            prompt = Prompt(unknown, [], text, special=True)
        else:
            text = "\n".join(message.content for message in request.chat.messages)
            prompt = Prompt(unknown, [], self._tokenizer.render(request.chat))
        try:
            return _Opened(prompt, text, snapshot.scanner.scan(text), "")
        except ValueError as error:
            return _Opened(prompt, text, ScanResult(frozenset(), frozenset(), 0), str(error))


def _signals(
    context: inference_pb2.RequestContext, scan: ScanResult, found: Found, problem: str, known: dict[str, Any]
) -> Callable[..., Signals]:
    """The signals of a request, but for its length."""
    return partial(
        Signals,
        domain=found.domain,
        declared=found.declared,
        detected=found.detected,
        confidence=found.confidence,
        flags=scan.flags.union(context.flags),
        task=context.task,
        labels=tuple(sorted(context.labels.items())),
        tenant=context.tenant,
        session=context.session,
        max_tier=Tier(context.max_tier) if context.max_tier else None,
        scanned_bytes=scan.scanned_bytes,
        prompt_bytes=scan.scanned_bytes,
        classifier_error=problem,
        **known,
    )


def _check_context(context: inference_pb2.RequestContext) -> None:
    for name in ("domain", "task", "tenant", "session"):
        if len(getattr(context, name)) > MAX_NAME:
            raise InvalidRequestError.of(f"context.{name}", f"must have {MAX_NAME} characters at most")
    if context.max_tier and int(context.max_tier) not in list(Tier):
        raise InvalidRequestError.of("context.max_tier", f"{context.max_tier} is not a tier")
