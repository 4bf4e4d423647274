"""Turns a request into signals and the token ids that a worker takes."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from sparsity.errors import InvalidRequestError
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Signals, Tier
from sparsity_policies.scan import ScanResult
from sparsity_policies.snapshot import Snapshot

from sparsity_router.tokens import ModelTokenizer

# Below this a thread costs more than the work.
_INLINE_BYTES = 16_384
MAX_NAME = 256


class Classified(NamedTuple):
    """A request, understood.

    Attributes:
        signals: what policy decides from.
        token_ids: the prompt in the model's tokens.
    """

    signals: Signals
    token_ids: list[int]


class Classifier:
    """Counts tokens exactly and scans the whole prompt."""

    def __init__(self, tokenizer: ModelTokenizer, max_prompt_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._max_prompt_bytes = max_prompt_bytes

    async def classify(
        self,
        request: inference_pb2.GenerateRequest,
        snapshot: Snapshot,
        *,
        received: float = 0.0,
        policy_age: float = 0.0,
        request_key: str = "",
    ) -> Classified:
        """Classifies one request; long prompts are worked on off the event loop.

        Args:
            request: as the caller sent it.
            snapshot: whose detection the prompt is scanned for.
            received: when it came, seconds since the epoch by the policy source's clock.
            policy_age: since the snapshot was last confirmed, seconds.
            request_key: unique to the request.

        Raises:
            InvalidRequestError: naming the field.
        """
        context = request.context
        _check_context(context)
        size = self._check_prompt(request)
        if size > _INLINE_BYTES:
            ids, scan, problem = await asyncio.to_thread(self._read_prompt, request, snapshot)
        else:
            ids, scan, problem = self._read_prompt(request, snapshot)
        if not ids:
            raise InvalidRequestError.of("prompt", "is empty once tokenized")
        if len(ids) >= self._tokenizer.context_length:
            limit = self._tokenizer.context_length
            problem = f"has {len(ids)} tokens; the model takes {limit}, its answer included: shorten the prompt"
            raise InvalidRequestError.of("prompt", problem)
        signals = Signals(
            min_tokens=len(ids),
            max_tokens=len(ids),
            domain=context.domain,
            flags=frozenset(context.flags) | scan.flags,
            task=context.task,
            labels=tuple(sorted(context.labels.items())),
            tenant=context.tenant,
            session=context.session,
            max_tier=Tier(context.max_tier) if context.max_tier else None,
            scanned_bytes=scan.scanned_bytes,
            prompt_bytes=scan.scanned_bytes,
            classifier_error=problem,
            received_at=received,
            policy_age=policy_age,
            request_key=request_key,
        )
        return Classified(signals, ids)

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

    def _read_prompt(
        self, request: inference_pb2.GenerateRequest, snapshot: Snapshot
    ) -> tuple[list[int], ScanResult, str]:
        """Token ids, the scan of the whole text, and what kept the scan from an answer."""
        kind = request.WhichOneof("prompt")
        if kind == "token_ids":
            ids = list(request.token_ids.ids)
            text = self._tokenizer.decode(ids)
        elif kind == "text":
            text = request.text
            ids = self._tokenizer.encode(text, special=True)
        else:
            text = "\n".join(message.content for message in request.chat.messages)
            ids = self._tokenizer.encode(self._tokenizer.render(request.chat), special=False)
        try:
            return ids, snapshot.scanner.scan(text), ""
        except ValueError as error:
            return ids, ScanResult(frozenset(), frozenset(), 0), str(error)


def _check_context(context: inference_pb2.RequestContext) -> None:
    for name in ("domain", "task", "tenant", "session"):
        if len(getattr(context, name)) > MAX_NAME:
            raise InvalidRequestError.of(f"context.{name}", f"must have {MAX_NAME} characters at most")
    if context.max_tier and int(context.max_tier) not in list(Tier):
        raise InvalidRequestError.of("context.max_tier", f"{context.max_tier} is not a tier")
