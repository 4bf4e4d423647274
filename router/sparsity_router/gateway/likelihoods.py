"""Log-probabilities of tokens in OpenAI's two forms: of a chat's, and of a text's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sparsity.v1 import inference_pb2

Logprobs = Sequence[inference_pb2.TokenLogprob]


def of_chat(tokens: Logprobs) -> dict[str, Any]:
    """Of a message: a token with its bytes, and what might have stood in its place."""
    return {"content": [_entry(token) | {"top_logprobs": [_entry(other) for other in token.top]} for token in tokens],
            "refusal": None}  # fmt: skip


def of_text(tokens: Logprobs, offset: int) -> dict[str, Any]:
    """Of a text: parallel lists; ``offset`` characters came before."""
    words = [_word(token.token) for token in tokens]
    # Of a long answer each must not be reckoned from the beginning.
    starts = list(accumulate(map(len, words), initial=offset))[:-1]
    tops = [{_word(other.token): other.logprob for other in token.top} for token in tokens]
    return {
        "tokens": words,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": starts,
    }


def _entry(token: inference_pb2.TokenLogprob | inference_pb2.TokenAlternative) -> dict[str, Any]:
    return {"token": _word(token.token), "logprob": token.logprob, "bytes": list(token.token)}


def _word(data: bytes) -> str:
    """A token as text; it may be a part of a character."""
    return data.decode("utf-8", "replace")
