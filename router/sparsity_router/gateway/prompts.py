"""Reads prompts: chat messages, or the prompt of a completion."""

from __future__ import annotations

from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_MESSAGES

from sparsity_router.gateway.asking import Asked, Field, Put, ignored, read, refused, taken
from sparsity_router.gateway.parameters import at_most, kind, only, text, whole
from sparsity_router.gateway.tools import CACHE_CONTROL, tool_calls

_MOST_ID = 2**32 - 1


def _content(asked: Asked, value: Any, name: str) -> None:
    """A text, or parts of type `text`, which are joined by line breaks."""
    message = asked.message.chat.messages[-1]
    if not isinstance(value, list):
        message.content = text(value, name)
        return
    parts = []
    for number, part in enumerate(value):
        own = f"{name}[{number}]"
        if not isinstance(part, dict):
            raise InvalidRequestError.of(own, f"must be an object, not {kind(part)}")
        if part.get("type") != "text":
            raise InvalidRequestError.of(f"{own}.type", "must be text: the models here read nothing else")
        only(part, {"type", "text", CACHE_CONTROL}, own)
        parts.append(text(part.get("text"), f"{own}.text"))
    message.content = "\n".join(parts)


def _part(field: str) -> Put:
    """Reads a text into a field of the turn."""

    def put(asked: Asked, value: Any, name: str) -> None:
        messages = asked.message.chat.messages
        setattr(messages[-1], field, text(value, name))
        if not name.endswith(f".{field}"):
            asked.names[f"chat.messages[{len(messages) - 1}].{field}"] = name

    return put


def _reasoning(asked: Asked, value: Any, name: str) -> None:
    """Reads what the assistant thought, which servers have two names for."""
    thought = asked.message.chat.messages[-1].reasoning
    if thought and thought != value:
        raise InvalidRequestError.of(name, "differs from its other name: send one")
    _part("reasoning")(asked, value, name)


MESSAGE: dict[str, Field] = {
    field.name: field
    for field in (
        taken("role", "`system`, `developer`, `user`, `assistant` or `tool`", _part("role")),
        taken("content", "a text, or parts of type `text`, which are joined by line breaks", _content),
        taken("name", "templates that read no names leave it out", _part("name")),
        ignored("annotations", "of an answer that is sent back"),
        taken("tool_calls", "what the assistant called", tool_calls),
        taken("tool_call_id", "of a tool's turn, the call that it answers", _part("tool_call_id")),
        taken("reasoning_content", "what the assistant thought; not OpenAI's, as SGLang has it", _reasoning),
        taken("reasoning", "the same, as vLLM has it", _reasoning),
        ignored(CACHE_CONTROL, "every prefix is kept that there is room for; so in a part, and in a tool"),
        refused("function_call", "send `tool_calls`"),
        refused("audio", "no model here hears or speaks"),
        refused("refusal", "put what was said into `content`"),
    )
}


def messages(asked: Asked, value: Any, name: str) -> None:
    """Reads a conversation."""
    if not isinstance(value, list):
        raise InvalidRequestError.of(name, f"must be an array of messages, not {kind(value)}")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequestError.of(name, f"are {len(value)}; this router takes {MAX_MESSAGES}")
    # Set, though empty: it is a chat all the same.
    asked.message.chat.SetInParent()
    asked.names["chat"] = asked.names["prompt"] = name
    for number, one in enumerate(value):
        own = f"{name}[{number}]"
        if not isinstance(one, dict):
            raise InvalidRequestError.of(own, f"must be an object, not {kind(one)}")
        asked.message.chat.messages.add()
        read(MESSAGE, one, asked, f"{own}.")
        # Who calls tools need not say anything, and some models answer nothing.
        for needed in ("role",) if one.get("role") == "assistant" else ("role", "content"):
            if one.get(needed) is None:
                raise InvalidRequestError.of(f"{own}.{needed}", "is missing")


def prompt(asked: Asked, value: Any, name: str) -> None:
    """Reads a text or token ids; of an array of prompts, the only one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        asked.message.text = text(value, name)
        asked.names["text"] = name
        return
    if not isinstance(value, list):
        raise InvalidRequestError.of(name, f"must be text or token ids, not {kind(value)}")
    if value and isinstance(value[0], (str, list)):
        raise InvalidRequestError.of(name, f"holds {len(value)} prompts; send each by itself")
    at_most(value, asked.most_ids, name)
    # Which one is wrong is looked for where one is: there may be a million.
    if value and not (set(map(type, value)) == {int} and 0 <= min(value) <= max(value) <= _MOST_ID):
        for number, one in enumerate(value):
            whole(one, f"{name}[{number}]", _MOST_ID)
    asked.message.token_ids.CopyFrom(inference_pb2.TokenIds(ids=value))
    asked.names["token_ids.ids"] = name
