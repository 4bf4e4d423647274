"""What every channel is opened with, and the metadata that calls carry."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 64 * 2**20
MESSAGE_SIZE: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
"""Channel options that allow it."""
NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)
"""Our services are called where they are, whatever proxies the environment names for the rest of the world."""
FELL_BACK: Final = "sparsity-fell-back"
"""Metadata of a call that takes the relay because the worker of this decision would not have it."""
LOST: Final = "sparsity-worker-lost"
"""Metadata of such a call whose worker was lost with the request."""
DECISION_ID: Final = "sparsity-decision-id"
"""Trailer with the id of a call's decision, as soon as the call has one."""
TIER: Final = "sparsity-tier"
"""Trailer with the tier that serves the call, or that policy gives it while nobody does."""
REASON: Final = "sparsity-reason"
"""Trailer with the reason for that tier."""
