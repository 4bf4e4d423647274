"""A prompt as its caller wrote it: read out of the request once, and refused where it makes no sense."""

from __future__ import annotations

from typing import NamedTuple

from sparsity.v1 import inference_pb2
from sparsity_policies.matching.signs import NONE, Signs, signs_of
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.response_format import format_text

from sparsity_router.prompts.chats.chat import Chat, read_chat
from sparsity_router.prompts.control import ControlTokens


class Prompt(NamedTuple):
    """A prompt as its caller wrote it, read once: protobuf copies a text at every reading.

    Attributes:
        kind: `text`, `chat` or `token_ids`.
        text: all of it, control tokens broken up; empty for token ids.
        data: what is scanned, in UTF-8: the text, what is read without the control tokens in it, and what the answer is
            held to.
        size: bytes to work on.
        chat: what a chat is rendered from.
        form: what the answer is held to, control tokens broken up; empty without.
        control: whether control tokens are written in it.
        signs: that what is scanned may be read otherwise; none of token ids, whose text is not known yet.
    """

    kind: str
    text: str
    data: bytes
    size: int
    chat: Chat | None = None
    form: str = ""
    control: bool = False
    signs: Signs = NONE


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


def read_prompt(request: inference_pb2.GenerateRequest, bounds: Bounds) -> Prompt:
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
    # No model reads it, but it tells what is asked for.
    told, scanned = bounds.control.opened(format_text(request.sampling))
    form = scanned.encode()
    if kind == "token_ids":
        ids = request.token_ids.ids
        if not ids:
            raise InvalidRequestError.of("token_ids.ids", "is empty")
        # Before anybody goes through them.
        if len(ids) >= bounds.context_length:
            raise InvalidRequestError.too_long("token_ids.ids", f"are {len(ids)}", bounds.context_length)
        if len(ids) > (most := bounds.max_bytes // 4):
            raise InvalidRequestError.of(
                "token_ids.ids", f"are {len(ids)}; this router takes {most}: shorten the prompt"
            )
        if (highest := max(ids)) >= bounds.vocabulary_size:
            problem = f"{highest} is not below the vocabulary size {bounds.vocabulary_size}"
            raise InvalidRequestError.of("token_ids.ids", problem)
        return Prompt(kind, "", form, 4 * len(ids), form=told)
    chat = None
    if kind == "text":
        text, field = request.text, "text"
    else:
        chat = read_chat(request)
        # Without a word there is nothing to answer, however many messages and tools there are.
        spoken = any(message["content"] or "tool_calls" in message for message in chat.messages)
        text, field = "\n".join(chat.written()) if spoken else "", "chat.messages"
    if not text:
        raise InvalidRequestError.of(field, "is empty")
    data = text.encode()
    size = len(data)
    if size > bounds.max_bytes:
        problem = f"is {size} bytes long; this router takes {bounds.max_bytes}: shorten the prompt"
        raise InvalidRequestError.of(field, problem)
    control = bounds.control.occur(text)
    if control:
        text, scanned = bounds.control.opened(text)
        data, size = scanned.encode(), len(text.encode())
    data = b"\n".join((data, form)) if form else data
    return Prompt(kind, text, data, size, chat, told, control, signs_of(data))
