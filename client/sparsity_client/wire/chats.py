"""Turns, tools and formats of a request as messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from sparsity.v1 import inference_pb2

from sparsity_client.request import Grammar, JsonObject, JsonSchema, Message, Regex, ResponseFormat, Tool

CHOICES: Final = {
    "auto": inference_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": inference_pb2.TOOL_CHOICE_MODE_NONE,
    "required": inference_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def to_turn(turn: Message) -> inference_pb2.ChatMessage:
    """The message of a turn."""
    message = inference_pb2.ChatMessage(
        role=turn.role,
        content=turn.content,
        tool_call_id=turn.tool_call_id,
        name=turn.name,
        reasoning=turn.reasoning,
    )
    for call in turn.tool_calls:
        message.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
    return message


def to_tool(tool: Tool) -> inference_pb2.Tool:
    """The message of a tool."""
    parameters = None if tool.parameters is None else _json(tool.parameters)
    return inference_pb2.Tool(name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict)


def to_format(wanted: ResponseFormat) -> inference_pb2.ResponseFormat:
    """The message of what an answer is held to."""
    match wanted:
        case JsonSchema(schema):
            return inference_pb2.ResponseFormat(json_schema=_json(schema))
        case JsonObject():
            return inference_pb2.ResponseFormat(json_object=True)
        case Regex(pattern):
            return inference_pb2.ResponseFormat(regex=pattern)
        case Grammar(text):
            return inference_pb2.ResponseFormat(grammar=text)


def _json(document: str | Mapping[str, object]) -> str:
    return document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
