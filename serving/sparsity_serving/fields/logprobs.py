"""Log-probabilities that an answer carries."""

from __future__ import annotations

from typing import Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError

MAX_TOP: Final = 20
MAX_PROMPT_TOKENS: Final = 2048
"""Of a prompt whose log-probabilities are asked for: each of its tokens costs a row over the vocabulary."""


def check_logprobs(options: inference_pb2.LogprobOptions) -> None:
    """Refuses more alternatives than are sorted out.

    Raises:
        InvalidRequestError: naming the field.
    """
    if options.top > MAX_TOP:
        raise InvalidRequestError.of("logprobs.top", f"must be in [0, {MAX_TOP}], not {options.top}")


def check_prompt_logprobs(options: inference_pb2.LogprobOptions, tokens: int) -> None:
    """Refuses log-probabilities of a prompt that is too long for them.

    Raises:
        InvalidRequestError: naming the field.
    """
    if options.prompt and tokens > MAX_PROMPT_TOKENS:
        problem = f"is for prompts of {MAX_PROMPT_TOKENS} tokens at most; this one has {tokens}"
        raise InvalidRequestError.of("logprobs.prompt", problem)
