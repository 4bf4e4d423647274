"""Reads tools, the choice among them, and the calls of earlier turns."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.documents import check_size
from sparsity_serving.fields.tools import MAX_CALLS, MAX_TOOLS

from sparsity_router.gateway.asking import Asked
from sparsity_router.gateway.parameters import at_most, flag, kind, only, text

CACHE_CONTROL: Final = "cache_control"
"""As frameworks mark a prefix for Anthropic's cache; ours keeps every prefix that it has room for."""
_MODES = {
    "auto": inference_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": inference_pb2.TOOL_CHOICE_MODE_NONE,
    "required": inference_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def tools(asked: Asked, value: Any, name: str) -> None:
    """Reads what the model may call: functions."""
    if not isinstance(value, list):
        raise InvalidRequestError.of(name, f"must be an array of tools, not {kind(value)}")
    at_most(value, MAX_TOOLS, name)
    for number, one in enumerate(value):
        own = f"{name}[{number}]"
        function = _function(one, own, ("name", "description", "parameters", "strict"), beside=(CACHE_CONTROL,))
        tool = asked.message.tools.add(name=text(function.get("name") or "", f"{own}.function.name"))
        if (description := function.get("description")) is not None:
            tool.description = text(description, f"{own}.function.description")
        if (parameters := function.get("parameters")) is not None:
            tool.parameters = document(parameters, f"{own}.function.parameters")
        tool.strict = flag(function.get("strict") or False, f"{own}.function.strict")
        asked.names[own] = f"{own}.function"


def tool_choice(asked: Asked, value: Any, name: str) -> None:
    """Reads whether the model may call tools, must, or must call a certain one."""
    choice = asked.message.tool_choice
    if isinstance(value, str):
        if value not in _MODES:
            raise InvalidRequestError.of(name, f"must be one of {', '.join(_MODES)}, or a function")
        choice.mode = _MODES[value]
        return
    choice.name = text(_function(value, name, ("name",)).get("name"), f"{name}.function.name")
    asked.names["tool_choice.name"] = f"{name}.function.name"


def parallel_tool_calls(asked: Asked, value: Any, name: str) -> None:
    """Reads whether several tools may be called; models cannot be told, so the door keeps to the first call."""
    asked.one_call = not flag(value, name)


def tool_calls(asked: Asked, value: Any, name: str) -> None:
    """Reads what the assistant called in its turn."""
    if not isinstance(value, list):
        raise InvalidRequestError.of(name, f"must be an array of calls, not {kind(value)}")
    at_most(value, MAX_CALLS, name)
    messages = asked.message.chat.messages
    for number, one in enumerate(value):
        own = f"{name}[{number}]"
        function = _function(one, own, ("name", "arguments"), beside=("id", "index"))
        call = messages[-1].tool_calls.add(
            id=text(one.get("id"), f"{own}.id"), name=text(function.get("name"), f"{own}.function.name")
        )
        call.arguments = text(function.get("arguments"), f"{own}.function.arguments")
        path = f"chat.messages[{len(messages) - 1}].tool_calls[{number}]"
        for part in ("name", "arguments"):
            asked.names[f"{path}.{part}"] = f"{own}.function.{part}"


def document(value: Any, name: str) -> str:
    """A JSON object as the contract carries it.

    Raises:
        InvalidRequestError: where it is none, or too long.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError.of(name, f"must be an object, not {kind(value)}")
    try:
        written = text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), name)
    except RecursionError as error:
        raise InvalidRequestError.of(name, "is nested too deeply") from error
    check_size(name, written)
    return written


def _function(value: Any, name: str, known: Collection[str], beside: Collection[str] = ()) -> dict[str, Any]:
    """The function of something of type `function`."""
    if not isinstance(value, dict):
        raise InvalidRequestError.of(name, f"must be an object, not {kind(value)}")
    if value.get("type") != "function":
        raise InvalidRequestError.of(f"{name}.type", "must be function: models call nothing else")
    function = value.get("function")
    if not isinstance(function, dict):
        raise InvalidRequestError.of(f"{name}.function", f"must be an object, not {kind(function)}")
    only(value, {"type", "function", *beside}, name)
    only(function, known, f"{name}.function")
    return function
