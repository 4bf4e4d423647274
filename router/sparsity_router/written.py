"""What a caller wrote: read out of the request once, and refused where it makes no sense."""

from __future__ import annotations

from typing import NamedTuple

from sparsity.errors import InvalidRequestError
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Tier

MAX_NAME = 256


class Written(NamedTuple):
    """What the caller wrote, read once: protobuf copies a text at every reading.

    Attributes:
        kind: `text`, `chat` or `token_ids`.
        text: all of it; empty for token ids.
        data: the text in UTF-8.
        size: bytes to work on.
    """

    kind: str
    text: str
    data: bytes
    size: int


def read_written(request: inference_pb2.GenerateRequest, vocabulary_size: int, max_bytes: int) -> Written:
    """Reads the prompt.

    Args:
        request: as the caller sent it.
        vocabulary_size: token ids lie below it.
        max_bytes: a longer text is refused.

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
        if (highest := max(ids)) >= vocabulary_size:
            problem = f"{highest} is not below the vocabulary size {vocabulary_size}"
            raise InvalidRequestError.of("token_ids.ids", problem)
        return Written(kind, "", b"", 4 * len(ids))
    if kind == "text":
        text, field = request.text, "text"
    else:
        contents = [message.content for message in request.chat.messages]
        # Without a word there is nothing to answer, however many messages there are.
        text, field = "\n".join(contents) if any(contents) else "", "chat.messages"
    if not text:
        raise InvalidRequestError.of(field, "is empty")
    data = text.encode()
    size = len(data)
    if size > max_bytes:
        problem = f"is {size} bytes long; this router takes {max_bytes}: shorten the prompt"
        raise InvalidRequestError.of(field, problem)
    return Written(kind, text, data, size)


def check_context(context: inference_pb2.RequestContext) -> None:
    """Checks what comes with the prompt.

    Raises:
        InvalidRequestError: naming the field.
    """
    for name in ("domain", "task", "tenant", "session"):
        if len(getattr(context, name)) > MAX_NAME:
            raise InvalidRequestError.of(f"context.{name}", f"must have {MAX_NAME} characters at most")
    if context.max_tier and int(context.max_tier) not in list(Tier):
        raise InvalidRequestError.of("context.max_tier", f"{context.max_tier} is not a tier")
