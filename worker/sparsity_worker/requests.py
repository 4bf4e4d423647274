"""Checks a request and puts it into the engine's terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sparsity.errors import InvalidRequestError, TokenCountError
from sparsity.sampling import DEFAULT_MAX_NEW_TOKENS
from sparsity.v1 import inference_pb2, worker_pb2
from tokenizers import Tokenizer

from sparsity_worker.config import ModelFacts
from sparsity_worker.engine import EngineRequest
from sparsity_worker.plugin import MEASURE_KEY, REASONING_KEY, STEPWISE_KEY

MAX_STOPS = 16


def read_prompt(request: worker_pb2.WorkerServiceGenerateRequest, tokenizer: Tokenizer) -> list[int]:
    """The prompt's token ids.

    Raises:
        InvalidRequestError: when it has both forms.
        TokenCountError: when the router decided for another length.
    """
    if not request.HasField("text"):
        return list(request.prompt.ids)
    text = request.text
    if request.prompt.ids:
        raise InvalidRequestError.of("text", "stands beside `prompt`; set one of them")
    ids: list[int] = tokenizer.encode(text.text, add_special_tokens=text.add_special_tokens).ids
    if not text.min_tokens <= len(ids) <= text.max_tokens:
        problem = f"{len(ids)} tokens are not in [{text.min_tokens}, {text.max_tokens}], which the router decided for"
        raise TokenCountError(f"the prompt's {problem}")
    return ids


def engine_request(
    request: worker_pb2.WorkerServiceGenerateRequest,
    prompt: list[int],
    facts: ModelFacts,
    markers: Sequence[int] = (),
    measured: bool = False,
) -> EngineRequest:
    """The request as the engine takes it.

    Args:
        request: as it came.
        prompt: its token ids.
        facts: the model.
        markers: token ids around a reasoning span, if the model has any.
        measured: whether its coverage is measured although it does not ask for that.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not request.request_id:
        raise InvalidRequestError.of("request_id", "is empty")
    if not prompt:
        raise InvalidRequestError.of("prompt", "is empty")
    if (highest := max(prompt)) >= facts.vocabulary_size:
        raise InvalidRequestError.of(
            "prompt.ids", f"{highest} is not below the vocabulary size {facts.vocabulary_size}"
        )
    sampling = sampling_params(request.sampling)
    custom: dict[str, Any] = {REASONING_KEY: list(markers)} if request.dense_reasoning else {}
    if measured or request.measure_coverage:
        custom[MEASURE_KEY] = True
    if request.sampling.stop:
        custom[STEPWISE_KEY] = True
    if custom:
        sampling["custom_params"] = custom
    total = len(prompt) + sampling["max_new_tokens"]
    if total > facts.context_length:
        raise InvalidRequestError.of(
            "sampling.max_new_tokens",
            f"{len(prompt)} prompt tokens and {sampling['max_new_tokens']} new ones exceed the context length"
            f" {facts.context_length}; shorten the prompt or ask for fewer",
        )
    return EngineRequest(
        rid=request.request_id,
        prompt=prompt,
        sampling=sampling,
        cache_salt=request.cache_salt if request.HasField("cache_salt") else None,
    )


def marker_ids(tokenizer: Tokenizer, markers: Sequence[str]) -> tuple[int, ...]:
    """Token ids of the markers around a reasoning span; none when the tokenizer does not have both as tokens."""
    found = [tokenizer.token_to_id(marker) for marker in markers]
    return () if None in found else tuple(int(each) for each in found if each is not None)


def sampling_params(params: inference_pb2.SamplingParams) -> dict[str, Any]:
    """SGLang's sampling parameters; unset fields keep its defaults, except that decoding is greedy.

    Raises:
        InvalidRequestError: naming the field and its range.
    """
    out: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": DEFAULT_MAX_NEW_TOKENS}
    ranges = {
        "max_new_tokens": (1, math.inf),
        "temperature": (0.0, 2.0),
        "top_p": (math.nextafter(0.0, 1.0), 1.0),
        "top_k": (1, math.inf),
        "frequency_penalty": (-2.0, 2.0),
        "presence_penalty": (-2.0, 2.0),
    }
    for name, (low, high) in ranges.items():
        if not params.HasField(name):  # type: ignore[arg-type]
            continue
        value = getattr(params, name)
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise InvalidRequestError.of(f"sampling.{name}", f"must be {bound}, not {value:g}")
        out[name] = value
    if len(params.stop) > MAX_STOPS or not all(params.stop):
        raise InvalidRequestError.of("sampling.stop", f"must be at most {MAX_STOPS} texts, none of them empty")
    if params.HasField("ignore_eos"):
        out["ignore_eos"] = params.ignore_eos
    if params.HasField("seed"):
        out["sampling_seed"] = params.seed & (2**63 - 1)
    return out
