"""Checks a request and puts it into the engine's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError, TokenCountError
from sparsity_rpc.tiers import DENSE
from sparsity_serving.sampling import check_sampling, most_new_tokens
from tokenizers import Tokenizer

from sparsity_worker.config import ModelFacts
from sparsity_worker.engine.grammar import constraint
from sparsity_worker.engine.sglang_engine import EngineRequest
from sparsity_worker.keys import MEASURE_KEY, REASONING_KEY, STEPWISE_KEY

# Keeps the first candidate alone, as anything below does; a GPU that flushes smaller numbers to 0 would find none.
_LEAST_TOP_P = 1e-6
# Characters; vocabularies have runs of spaces this long at most.
_LONGEST_TOKEN = 256


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


def check_size(request: worker_pb2.WorkerServiceGenerateRequest, facts: ModelFacts) -> None:
    """Refuses a prompt that cannot fit, before anybody goes through it.

    Raises:
        InvalidRequestError: naming the field.
    """
    if (count := len(request.prompt.ids)) >= facts.context_length:
        raise InvalidRequestError.too_long("prompt.ids", f"are {count}", facts.context_length)
    if (size := len(request.text.text)) > _LONGEST_TOKEN * facts.context_length:
        problem = f"has {size} characters, more than {facts.context_length} tokens ever have"
        raise InvalidRequestError.of("text.text", problem)


def engine_request(
    request: worker_pb2.WorkerServiceGenerateRequest,
    prompt: list[int],
    facts: ModelFacts,
    markers: Sequence[int] = (),
    measured: bool = False,
    tier: str = DENSE,
) -> EngineRequest:
    """The request as the engine takes it.

    Args:
        request: as it came.
        prompt: its token ids.
        facts: the model.
        markers: token ids around a reasoning span, if the model has any.
        measured: whether its coverage is measured although it does not ask for that.
        tier: that it is served at.

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
    sampling = sampling_params(request.sampling, facts)
    sampling["max_new_tokens"] = most_new_tokens(request, facts.context_length - len(prompt))
    custom: dict[str, Any] = {REASONING_KEY: list(markers)} if request.dense_reasoning and tier != DENSE else {}
    if measured or request.measure_coverage:
        custom[MEASURE_KEY] = True
    if request.sampling.stop:
        custom[STEPWISE_KEY] = True
    if custom:
        sampling["custom_params"] = custom
    total = len(prompt) + sampling["max_new_tokens"]
    if total > facts.context_length:
        raise InvalidRequestError.too_long_answer(
            f"{len(prompt)} prompt tokens and {sampling['max_new_tokens']} new ones are too many",
            facts.context_length,
        )
    return EngineRequest(
        rid=request.request_id,
        prompt=prompt,
        sampling=sampling,
        tier=tier,
        cache_salt=request.cache_salt if request.HasField("cache_salt") else None,
    )


def marker_ids(tokenizer: Tokenizer, markers: Sequence[str]) -> tuple[int, ...]:
    """Token ids of the markers around a reasoning span; none when the tokenizer does not have both as tokens."""
    found = [tokenizer.token_to_id(marker) for marker in markers]
    return () if None in found else tuple(int(each) for each in found if each is not None)


def sampling_params(params: inference_pb2.SamplingParams, facts: ModelFacts) -> dict[str, Any]:
    """SGLang's sampling parameters but for the answer's length.

    Unset fields are the model's, else SGLang's, except that decoding is greedy.

    Raises:
        InvalidRequestError: naming the field and its range.
    """
    check_sampling(params, facts.context_length, facts.vocabulary_size)
    asked = inference_pb2.SamplingParams()
    asked.CopyFrom(params)
    facts.defaults.fill(asked)
    out: dict[str, Any] = {"temperature": 0.0}
    for name in ("temperature", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "ignore_eos"):
        if asked.HasField(name):
            out[name] = getattr(asked, name)
    if asked.HasField("top_p"):
        out["top_p"] = max(asked.top_p, _LEAST_TOP_P)
    # As many candidates as there are tokens is all of them, which is what the engine does without the field.
    if asked.HasField("top_k") and asked.top_k < facts.vocabulary_size:
        out["top_k"] = asked.top_k
    if asked.HasField("seed"):
        out["sampling_seed"] = asked.seed & (2**63 - 1)
    if asked.logit_bias:
        out["logit_bias"] = {str(each.token_id): each.bias for each in asked.logit_bias}
    return out | constraint(asked.response_format)
