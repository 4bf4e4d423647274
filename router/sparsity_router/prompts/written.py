"""What a caller wrote: read out of the request once, and refused where it makes no sense."""

from __future__ import annotations

from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.model import Tier
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_MESSAGES, MAX_PRIORITY, check_flags, check_labels, check_name
from sparsity_serving.sampling import check_sampling

from sparsity_router.prompts.control import ControlTokens


class Written(NamedTuple):
    """What the caller wrote, read once: protobuf copies a text at every reading.

    Attributes:
        kind: `text`, `chat` or `token_ids`.
        text: all of it; empty for token ids.
        data: what is scanned, in UTF-8: the text, and what is read without the control tokens in it.
        size: bytes to work on.
    """

    kind: str
    text: str
    data: bytes
    size: int


class Bounds(NamedTuple):
    """What a prompt may be.

    Attributes:
        vocabulary_size: token ids lie below it.
        context_length: there are fewer of them.
        max_bytes: of a text; a token id counts four.
        control: tokens that stay text where a caller writes them out.
    """

    vocabulary_size: int
    context_length: int
    max_bytes: int
    control: ControlTokens


def read_written(request: inference_pb2.GenerateRequest, bounds: Bounds) -> Written:
    """Reads the prompt.

    Args:
        request: as the caller sent it.
        bounds: of the prompt.

    Raises:
        InvalidRequestError: naming the field.
    """
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequestError.of("prompt", "is missing; set text, chat or token_ids")
    if kind == "token_ids":
        ids = request.token_ids.ids
        if not ids:
            raise InvalidRequestError.of("token_ids.ids", "is empty")
        # Before anybody goes through them.
        most = min(bounds.max_bytes // 4, bounds.context_length - 1)
        if len(ids) > most:
            problem = f"are {len(ids)}; this router takes {most}, the model's answer counted: shorten the prompt"
            raise InvalidRequestError.of("token_ids.ids", problem)
        if (highest := max(ids)) >= bounds.vocabulary_size:
            problem = f"{highest} is not below the vocabulary size {bounds.vocabulary_size}"
            raise InvalidRequestError.of("token_ids.ids", problem)
        return Written(kind, "", b"", 4 * len(ids))
    if kind == "text":
        text, field = request.text, "text"
    elif len(request.chat.messages) > MAX_MESSAGES:
        problem = f"are {len(request.chat.messages)}; this router takes {MAX_MESSAGES}"
        raise InvalidRequestError.of("chat.messages", problem)
    else:
        contents = [message.content for message in request.chat.messages]
        # Without a word there is nothing to answer, however many messages there are.
        text, field = "\n".join(contents) if any(contents) else "", "chat.messages"
    if not text:
        raise InvalidRequestError.of(field, "is empty")
    data = text.encode()
    size = len(data)
    if size > bounds.max_bytes:
        problem = f"is {size} bytes long; this router takes {bounds.max_bytes}: shorten the prompt"
        raise InvalidRequestError.of(field, problem)
    if bounds.control.occur(text):
        data, text = bounds.control.to_scan(text).encode(), bounds.control.as_text(text)
        size = len(text.encode())
    return Written(kind, text, data, size)


def check_beside(request: inference_pb2.GenerateRequest, context_length: int) -> None:
    """Checks what comes with the prompt.

    Args:
        request: as the caller sent it.
        context_length: of the model, tokens.

    Raises:
        InvalidRequestError: naming the field.
    """
    context = request.context
    for name in ("domain", "task", "tenant", "session"):
        check_name(f"context.{name}", getattr(context, name))
    check_flags("context.flags", context.flags)
    check_labels("context.labels", context.labels)
    if context.max_tier and int(context.max_tier) not in list(Tier):
        raise InvalidRequestError.of("context.max_tier", f"{context.max_tier} is not a tier")
    check_name("request_id", request.request_id)
    if not 0 <= request.priority <= MAX_PRIORITY:
        raise InvalidRequestError.of("priority", f"must be in [0, {MAX_PRIORITY}], not {request.priority}")
    check_sampling(request.sampling, context_length)
