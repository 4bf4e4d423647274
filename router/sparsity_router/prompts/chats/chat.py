"""A chat as its caller wrote it, read out of the request once."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

from google.protobuf.struct_pb2 import ListValue, Struct, Value
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_MESSAGES, check_name
from sparsity_serving.fields.documents import (
    MAX_DOCUMENT,
    check_depth,
    check_together,
    read_object,
    read_or_keep,
    texts,
)
from sparsity_serving.fields.tools import MAX_CALLS, check_tool_name, shown

from sparsity_router.prompts.chats.turns import Call, Function, Tool, Turn

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
MAX_VARIABLES: Final = 16
# A number of two bytes in JSON has eleven in a Struct.
_MOST_BYTES: Final = 8 * MAX_DOCUMENT
_EFFORT: Final = "reasoning_effort"
_WRITTEN: Final[tuple[Literal["reasoning_content", "name", "tool_call_id"], ...]] = (
    "reasoning_content",
    "name",
    "tool_call_id",
)


class Chat(NamedTuple):
    """A chat in what templates are written for.

    Attributes:
        messages: `role`, `content` and what else a turn has, by the names that templates know.
        tools: as OpenAI's schema has them.
        variables: that the template is to read besides.
    """

    messages: list[Turn]
    tools: list[Tool]
    variables: Mapping[str, object]

    def written(self) -> Iterator[str]:
        """All that its caller wrote and its model may read, as it reads without JSON's escapes."""
        for message in self.messages:
            yield message["content"]
            yield from (message[name] for name in _WRITTEN if name in message)
            for call in message.get("tool_calls", ()):
                yield call["id"]
                yield from texts([call["function"]["name"], call["function"]["arguments"]])
        for tool in self.tools:
            function = tool["function"]
            yield from texts([function["name"], function["description"], function["parameters"]])
        yield from texts(self.variables)


def read_chat(request: inference_pb2.GenerateRequest) -> Chat:
    """Reads the chat of a request; its tools were checked already.

    Raises:
        InvalidRequestError: naming the field.
    """
    turns = request.chat.messages
    if len(turns) > MAX_MESSAGES:
        raise InvalidRequestError.of("chat.messages", f"are {len(turns)}; this router takes {MAX_MESSAGES}")
    if (count := sum(len(turn.tool_calls) for turn in turns)) > MAX_MESSAGES:
        raise InvalidRequestError.of("chat.messages", f"have {count} calls; this router takes {MAX_MESSAGES}")
    tools = shown(request.tools, request.tool_choice)
    arguments = (call.arguments for turn in turns for call in turn.tool_calls)
    check_together("chat.messages", chain(arguments, (tool.parameters for tool in tools)))
    messages = [_message(f"chat.messages[{number}]", turn) for number, turn in enumerate(turns)]
    return Chat(messages, [_tool(tool) for tool in tools], _variables(request))


def _message(path: str, turn: inference_pb2.ChatMessage) -> Turn:
    if turn.role not in ROLES:
        problem = f"must be one of {', '.join(ROLES)}, not {reprlib.repr(turn.role)}"
        raise InvalidRequestError.of(f"{path}.role", problem)
    message: Turn = {"role": turn.role, "content": turn.content}
    if turn.name:
        check_name(f"{path}.name", turn.name)
        message["name"] = turn.name
    if turn.tool_call_id:
        if turn.role != "tool":
            raise InvalidRequestError.of(f"{path}.tool_call_id", f"is of a tool's turn, not of role {turn.role}")
        check_name(f"{path}.tool_call_id", turn.tool_call_id)
        message["tool_call_id"] = turn.tool_call_id
    for name, given in (("reasoning", turn.reasoning), ("tool_calls", turn.tool_calls)):
        if given and turn.role != "assistant":
            raise InvalidRequestError.of(f"{path}.{name}", f"is of an assistant's turn, not of role {turn.role}")
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = _calls(f"{path}.tool_calls", turn)
    return message


def _calls(path: str, turn: inference_pb2.ChatMessage) -> list[Call]:
    if len(turn.tool_calls) > MAX_CALLS:
        raise InvalidRequestError.of(path, f"are {len(turn.tool_calls)}; there may be {MAX_CALLS}")
    calls: list[Call] = []
    for number, call in enumerate(turn.tool_calls):
        check_name(f"{path}[{number}].id", call.id)
        check_tool_name(f"{path}[{number}].name", call.name)
        arguments = read_or_keep(f"{path}[{number}].arguments", call.arguments or "{}")
        calls.append({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
    return calls


def _tool(tool: inference_pb2.Tool) -> Tool:
    parameters = read_object("tools", tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    function: Function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _variables(request: inference_pb2.GenerateRequest) -> Mapping[str, object]:
    if (size := request.chat_template_kwargs.ByteSize()) > _MOST_BYTES:
        # Before anybody goes through them.
        raise InvalidRequestError.of("chat_template_kwargs", f"have {size} bytes; they may have {_MOST_BYTES}")
    given = request.chat_template_kwargs.fields
    if len(given) > MAX_VARIABLES:
        raise InvalidRequestError.of("chat_template_kwargs", f"are {len(given)}; there may be {MAX_VARIABLES}")
    variables: dict[str, object] = {name: _value(value) for name, value in given.items()}
    check_depth("chat_template_kwargs", variables)
    if request.HasField(_EFFORT):
        check_name(_EFFORT, request.reasoning_effort)
        if _EFFORT in variables:
            raise InvalidRequestError.of(_EFFORT, "stands in chat_template_kwargs, too; set one of them")
        variables[_EFFORT] = request.reasoning_effort
    return variables


def _value(value: Value | Struct | ListValue) -> Any:
    """What a value holds; whole numbers are whole."""
    if isinstance(value, Struct):
        return {name: _value(inner) for name, inner in value.fields.items()}
    if isinstance(value, ListValue):
        return [_value(inner) for inner in value.values]
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    held = getattr(value, kind)
    if kind in ("struct_value", "list_value"):
        return _value(held)
    return int(held) if kind == "number_value" and float(held).is_integer() else held
