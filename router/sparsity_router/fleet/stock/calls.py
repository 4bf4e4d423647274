"""Calls of tools in the text of a stock server's answer, as models of the Hermes kind write them (Nous Research, 2024).

They are JSON between `<tool_call>` and `</tool_call>`; where one is demanded, the answer is held to an array of them.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final, NamedTuple

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_serving.fields.tools import demanded
from sparsity_serving.tokens.detokenizer import overlap

OPENS: Final = "<tool_call>"
CLOSES: Final = "</tool_call>"
# Other families write other things between the same marks.
_OTHERS: Final = ("<function=", "<arg_key>")


def reads_calls(template: str) -> bool:
    """Whether a model calls tools in that form, by its chat template: for one without tools, routers ask for it."""
    if "tools" not in template:
        return True
    return OPENS in template and "arguments" in template and not any(other in template for other in _OTHERS)


def held_to(chat: worker_pb2.ChatParsing) -> str:
    """The JSON schema that an answer is held to where a call is demanded; empty where none is."""
    if not demanded(chat.tool_choice):
        return ""
    named = chat.tool_choice.name
    kinds = [_kind(tool) for tool in chat.tools if named in ("", tool.name)]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": kinds}}
    return json.dumps(schema | ({"maxItems": 1} if named else {}))


def _kind(tool: inference_pb2.Tool) -> dict[str, Any]:
    arguments = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    properties = {"name": {"type": "string", "enum": [tool.name]}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": ["name", "arguments"]}


class Told(NamedTuple):
    """What came: words, and whole calls."""

    text: str = ""
    calls: tuple[inference_pb2.ToolCallDelta, ...] = ()


class ToolCalls:
    """Calls in one answer.

    Args:
        chat: what the model may or must call.

    Attributes:
        count: calls so far.
    """

    def __init__(self, chat: worker_pb2.ChatParsing) -> None:
        self._names = frozenset(tool.name for tool in chat.tools)
        self._demanded = demanded(chat.tool_choice)
        self._held, self._inside, self._follows = "", False, False
        self.count = 0

    def push(self, text: str) -> Told:
        """Adds text; what may begin a mark, and a call that is not whole, is held back."""
        self._held += text
        if self._demanded:
            return Told()
        words, calls = "", []
        while True:
            if self._follows and not self._inside:
                # Behind a call there are line breaks that are nobody's words.
                self._held = self._held.lstrip()
                self._follows = not self._held
            mark = CLOSES if self._inside else OPENS
            before, found, after = self._held.partition(mark)
            if not found:
                break
            if not self._inside:
                words += before
            elif (call := self._read(before)) is not None:
                calls.append(call)
                self._follows = True
            else:
                words += OPENS + before + CLOSES
            self._held, self._inside = after, not self._inside
        if not self._inside:
            kept = len(self._held) - overlap(self._held, OPENS)
            words, self._held = words + self._held[:kept], self._held[kept:]
        return Told(words, tuple(calls))

    def finish(self) -> Told:
        """Releases what was held back; a call that was cut off stays as it was written."""
        rest, self._held = self._held, ""
        if not self._demanded:
            return Told((OPENS if self._inside else "") + rest)
        try:
            found = json.loads(rest)
        except ValueError:
            return Told(rest)
        each = (self._read(json.dumps(one)) for one in (found if isinstance(found, list) else ()))
        calls = tuple(call for call in each if call is not None)
        return Told("" if calls else rest, calls)

    def _read(self, text: str) -> inference_pb2.ToolCallDelta | None:
        """A call; None where it is none of a tool that there is."""
        try:
            found = json.loads(text)
            name, arguments = found["name"], found.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if name not in self._names or not isinstance(arguments, dict):
            return None
        self.count += 1
        call_id, written = f"call_{uuid.uuid4().hex[:24]}", json.dumps(arguments, ensure_ascii=False)
        return inference_pb2.ToolCallDelta(index=self.count - 1, id=call_id, name=name, arguments=written)
