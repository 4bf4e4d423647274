"""What sampling parameters mean where they are unset."""

from __future__ import annotations

from sparsity.v1 import inference_pb2

DEFAULT_MAX_NEW_TOKENS = 128


def new_tokens(sampling: inference_pb2.SamplingParams) -> int:
    """Tokens that a request may generate."""
    return sampling.max_new_tokens if sampling.HasField("max_new_tokens") else DEFAULT_MAX_NEW_TOKENS
