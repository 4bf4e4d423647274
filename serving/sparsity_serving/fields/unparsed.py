"""How much a serialized message holds, told before it is parsed.

A message within another may take two bytes there, and a hundred in memory: what a caller sends is bounded by both.
Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

MAX_PARTS: Final = 2**17
"""Messages in one, as many as JSON's objects and arrays at the HTTP door."""
MAX_FIELDS: Final = 2**19
"""Fields in all of them; numbers that are packed count as one."""
SMALL: Final = 65_536
"""Bytes: less cannot hold so many that it matters."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_SKIPPED: Final = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
_GROUPS: Final = (3, 4)
# A longer one no parser takes.
_LONGEST_TAG: Final = 5


@cache
def _messages_of(kind: Descriptor) -> Mapping[int, Descriptor]:
    """The fields that hold messages, by number."""
    fields = (field for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE)
    return {field.number: field.message_type for field in fields if field.message_type is not None}


def too_much(data: bytes, kind: Descriptor, most_bytes: int) -> str:
    """What keeps a serialized message from being parsed; empty where it may be.

    Args:
        data: as it came.
        kind: of the message.
        most_bytes: that it may have.
    """
    if len(data) > most_bytes:
        return f"has {len(data)} bytes; {most_bytes} are the most"
    return "" if len(data) <= SMALL else _counted(data, kind)


def _counted(data: bytes, kind: Descriptor) -> str:
    """Goes through a message as its parser would, no further than that, and no longer than it may be."""
    at, end, inner, around = 0, len(data), _messages_of(kind), list[tuple[int, Mapping[int, Descriptor]]]()
    parts = fields = 0
    try:
        while True:
            while at >= end:
                if not around:
                    return ""
                end, inner = around.pop()
            fields += 1
            if fields > MAX_FIELDS:
                return f"has more than {MAX_FIELDS} fields"
            begins = at
            tag, at = _varint(data, at)
            wire = tag & 7
            if at - begins > _LONGEST_TAG:
                return ""
            if wire == _VARINT:
                _, at = _varint(data, at)
            elif wire == _LENGTH:
                length, at = _varint(data, at)
                found = inner.get(tag >> 3)
                if found is None:
                    at += length
                    continue
                parts += 1
                if parts > MAX_PARTS:
                    return f"has more than {MAX_PARTS} messages in it"
                around.append((end, inner))
                end, inner = at + length, _messages_of(found)
            elif wire in _GROUPS:
                # A parser skips an unknown one whole, whatever is in it; no message here has any.
                return "has a group in it, which no message of this contract has"
            elif wire not in _SKIPPED:
                return ""
            else:
                at += _SKIPPED[wire]
    except IndexError:
        # Cut off; its parser says so.
        return ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and the place after it."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise IndexError
