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
        text = _scanned_text(request, self._tokenizer)
        try:
            scores, problem = await self._detector.detect(text, snapshot), ""
        except DetectionError as error:
            scores, problem = {}, str(error)
        if problem and context.domain:
            # What was declared holds, when nothing speaks against it.
            problem = ""
        return await asyncio.to_thread(self._read, request, snapshot, known, exact, scores, problem)

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
        request: inference_pb2.GenerateRequest,
        snapshot: Snapshot,
        known: dict[str, Any],
        exact: bool,
        scores: Mapping[str, Score] = _NO_SCORES,
        problem: str = "",
    ) -> Classified:
        """Scans the whole text, then counts tokens as closely as the decision needs it."""
        prompt, text = self._open(request)
        scan, failed = _scan(snapshot, text)
        found = resolve(request.context.domain, scan.domains, scores, snapshot)
        # A domain that the scan is certain of needs no classifier.
        problem = failed or ("" if found.domain else problem)
        signals = _signals(request.context, scan, found, problem, known)
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

    def _open(self, request: inference_pb2.GenerateRequest) -> tuple[Prompt, str]:
        """The prompt as far as it is known without counting, and the text that is scanned."""
        kind, text = request.WhichOneof("prompt"), _scanned_text(request, self._tokenizer)
        unknown = Interval(0, 0)
        if kind == "token_ids":
            return Prompt(unknown, list(request.token_ids.ids)), text
        if kind == "text":
            return Prompt(unknown, [], text, special=True), text
        return Prompt(unknown, [], self._tokenizer.render(request.chat)), text


def _scanned_text(request: inference_pb2.GenerateRequest, tokenizer: ModelTokenizer) -> str:
    """What the caller wrote, in one piece."""
    kind = request.WhichOneof("prompt")
    if kind == "token_ids":
        return tokenizer.decode(request.token_ids.ids)
    if kind == "text":
        return request.text
    return "\n".join(message.content for message in request.chat.messages)


def _scan(snapshot: Snapshot, text: str) -> tuple[ScanResult, str]:
    """What the scan found, and what kept it from an answer."""
    try:
        return snapshot.scanner.scan(text), ""
    except ValueError as error:
        return ScanResult(frozenset(), frozenset(), 0), str(error)


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
