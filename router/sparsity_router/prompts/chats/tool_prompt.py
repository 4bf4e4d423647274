"""Tools for models whose chat template knows none: written out before the chat, and what was called and told within it.

Calls stand between `<tool_call>` and `</tool_call>`, as models of the Hermes kind write them (Nous Research,
"Hermes-Function-Calling"); workers read them there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from sparsity_router.prompts.chats.turns import Tool, Turn

_BEFORE: Final = (
    "You can call the following tools. Each line describes one as JSON, its arguments by a JSON schema.\n<tools>"
)
_AFTER: Final = (
    "</tools>\nTo call a tool, write its name and arguments as JSON between tags, once for each call:\n"
    '<tool_call>\n{"name": "the tool", "arguments": {"an argument": "its value"}}\n</tool_call>\n'
    "What a tool answers follows between <tool_response> and </tool_response>."
)


def with_tools_written_out(messages: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """The messages in nothing but roles and contents that every template knows.

    Args:
        messages: of a chat.
        tools: that it may call.
    """
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join((_BEFORE, *lines, _AFTER))
    if plain and plain[0]["role"] == "system":
        first: Turn = {"role": "system", "content": f"{plain[0]['content']}\n\n{text}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _plain(message: Turn) -> Turn:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    if not calls:
        return message
    written = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    kept = message.copy()
    del kept["tool_calls"]
    kept["content"] = "\n".join(filter(None, (message["content"], *written)))
    return kept
