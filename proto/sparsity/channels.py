"""How large a message may be, the same at both ends of every channel."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 64 * 2**20
MESSAGE_SIZE: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
"""Channel options that allow it."""
