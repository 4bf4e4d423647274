"""What sampling parameters mean where they are unset, and what engines take of them."""

from __future__ import annotations

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError

DEFAULT_MAX_NEW_TOKENS = 128
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1024
# SGLang holds it in tensors of 32 signed bits (sglang.srt.sampling.sampling_batch_info), and dies of a larger one.
MAX_TOP_K = 2**31 - 1


def new_tokens(sampling: inference_pb2.SamplingParams) -> int:
    """Tokens that a request may generate."""
    return sampling.max_new_tokens if sampling.HasField("max_new_tokens") else DEFAULT_MAX_NEW_TOKENS


def check_sampling(sampling: inference_pb2.SamplingParams, context_length: int) -> None:
    """Checks every field that is set against what engines take.

    Args:
        sampling: as the caller sent it.
        context_length: of the model, tokens.

    Raises:
        InvalidRequestError: naming the field and its range.
    """
    ranges: dict[str, tuple[float, float]] = {
        "max_new_tokens": (1, context_length),
        "temperature": (0.0, 2.0),
        "top_k": (1, MAX_TOP_K),
        "frequency_penalty": (-2.0, 2.0),
        "presence_penalty": (-2.0, 2.0),
    }
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        # Not a number lies in no range.
        if sampling.HasField(name) and not low <= value <= high:  # type: ignore[arg-type]
            raise InvalidRequestError.of(f"sampling.{name}", f"must be in [{low}, {high}], not {_shown(value)}")
    if sampling.HasField("top_p") and not 0.0 < sampling.top_p <= 1.0:
        problem = f"must be above 0 and at most 1, not {_shown(sampling.top_p)}"
        raise InvalidRequestError.of("sampling.top_p", problem)
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InvalidRequestError.of("sampling.stop", f"must be at most {MAX_STOPS} texts, none of them empty")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise InvalidRequestError.of("sampling.stop", f"must be of {MAX_STOP_CHARACTERS} characters each at most")


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
