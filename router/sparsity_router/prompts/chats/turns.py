"""What chat templates read, in OpenAI's names (platform.openai.com/docs/api-reference/chat): turns, calls and tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict


class Called(TypedDict):
    """A function that was called; what is no JSON object of its arguments is text as it came."""

    name: str
    arguments: Mapping[str, object] | str


class Call(TypedDict):
    """A call of an assistant's turn."""

    id: str
    type: Literal["function"]
    function: Called


class Turn(TypedDict):
    """A message of a chat: who says what, and what else its role allows."""

    role: str
    content: str
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class Function(TypedDict):
    """A function that may be called, with its arguments' JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, object]


class Tool(TypedDict):
    """What a chat may call."""

    type: Literal["function"]
    function: Function
