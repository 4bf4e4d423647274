"""What sampling parameters mean where they are unset, and what engines take of them."""

from __future__ import annotations

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError

from sparsity_serving.fields.response_format import check_response_format

DEFAULT_MAX_NEW_TOKENS = 128
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1024
# SGLang holds it in tensors of 32 signed bits (sglang.srt.sampling.sampling_batch_info), and dies of a larger one.
MAX_TOP_K = 2**31 - 1
MAX_BIASES = 300
MAX_ANSWERS = 16


def new_tokens(sampling: inference_pb2.SamplingParams) -> int:
    """Tokens that a request may generate; where it does not say, those that its answer is reckoned with."""
    return sampling.max_new_tokens if sampling.HasField("max_new_tokens") else DEFAULT_MAX_NEW_TOKENS


def most_new_tokens(request: worker_pb2.WorkerServiceGenerateRequest, room: int) -> int:
    """Tokens that a request may generate.

    Args:
        request: as workers take it.
        room: tokens that there is room for after its prompt; what it says itself is not held to that.
    """
    if request.sampling.HasField("max_new_tokens"):
        return request.sampling.max_new_tokens
    return max(min(request.default_max_new_tokens or DEFAULT_MAX_NEW_TOKENS, room), 1)


def wanted_answers(request: inference_pb2.GenerateRequest) -> int:
    """Answers that a request asks for."""
    return request.n if request.HasField("n") else 1


def check_sampling(sampling: inference_pb2.SamplingParams, context_length: int, vocabulary_size: int) -> None:
    """Checks every field that is set against what engines take.

    Args:
        sampling: as the caller sent it.
        context_length: of the model, tokens.
        vocabulary_size: of the model; token ids lie below it.

    Raises:
        InvalidRequestError: naming the field and its range.
    """
    ranges: dict[str, tuple[float, float]] = {
        "max_new_tokens": (1, context_length),
        "temperature": (0.0, 2.0),
        "top_k": (1, MAX_TOP_K),
        "frequency_penalty": (-2.0, 2.0),
        "presence_penalty": (-2.0, 2.0),
        "min_p": (0.0, 1.0),
        # What scores are divided by: less would make infinities of them.
        "repetition_penalty": (0.125, 2.0),
    }
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        # Not a number lies in no range.
        if sampling.HasField(name) and not low <= value <= high:  # type: ignore[arg-type]
            raise InvalidRequestError.of(f"sampling.{name}", f"must be in [{low}, {high}], not {_shown(value)}")
    if sampling.HasField("top_p") and not 0.0 < sampling.top_p <= 1.0:
        raise InvalidRequestError.of("sampling.top_p", f"must be above 0 and at most 1, not {_shown(sampling.top_p)}")
    if len(sampling.stop) > MAX_STOPS or not all(sampling.stop):
        raise InvalidRequestError.of("sampling.stop", f"must be at most {MAX_STOPS} texts, none of them empty")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise InvalidRequestError.of("sampling.stop", f"must be of {MAX_STOP_CHARACTERS} characters each at most")
    _check_biases(sampling, vocabulary_size)
    check_response_format(sampling)


def _check_biases(sampling: inference_pb2.SamplingParams, vocabulary_size: int) -> None:
    biases = sampling.logit_bias
    if len(biases) > MAX_BIASES:
        raise InvalidRequestError.of("sampling.logit_bias", f"are {len(biases)}; there may be {MAX_BIASES}")
    seen: set[int] = set()
    for number, each in enumerate(biases):
        path = f"sampling.logit_bias[{number}]"
        if each.token_id >= vocabulary_size:
            problem = f"{each.token_id} is not below the vocabulary size {vocabulary_size}"
            raise InvalidRequestError.of(f"{path}.token_id", problem)
        if each.token_id in seen:
            raise InvalidRequestError.of(f"{path}.token_id", f"{each.token_id} has a bias already")
        if not -100.0 <= each.bias <= 100.0:
            raise InvalidRequestError.of(f"{path}.bias", f"must be in [-100, 100], not {_shown(each.bias)}")
        seen.add(each.token_id)


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
