"""Messages as they are serialized, of what no client would send."""

from __future__ import annotations

from typing import Any

from sparsity.v1 import inference_pb2


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def within(kind: Any, name: str, data: bytes = b"") -> bytes:
    """A field of a message, text or bytes that holds ``data``."""
    number = int(kind.DESCRIPTOR.fields_by_name[name].number)
    return varint(number << 3 | 2) + varint(len(data)) + data


def empty_turns(count: int) -> bytes:
    """A request of so many turns of a chat, two bytes each."""
    turns = within(inference_pb2.ChatPrompt, "messages") * count
    return within(inference_pb2.GenerateRequest, "chat", turns)
