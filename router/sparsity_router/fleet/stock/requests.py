"""A request of workers in the terms of SGLang's contract."""

from __future__ import annotations

import json
from typing import Any, Final

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import InvalidRequestError, OverloadedError, TokenCountError
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.sampling import most_new_tokens

from sparsity_router.fleet.stock.calls import held_to
from sparsity_router.fleet.stock.contract import contract
from sparsity_router.fleet.stock.model import StockModel

# Keeps the first candidate alone, as anything below does; 0 is what an unset one reads as.
_LEAST_TOP_P: Final = 1e-6
_NAMES: Final = {"json_schema": "json_schema", "regex": "regex", "grammar": "ebnf_grammar"}


async def prompt_of(request: worker_pb2.WorkerServiceGenerateRequest, model: StockModel) -> list[int]:
    """The prompt's token ids.

    Raises:
        InvalidRequestError: when there are none, or one that the model does not have: a server dies of it.
        TokenCountError: when a text has other tokens than it was decided for.
    """
    ids = list(request.prompt.ids) if not request.HasField("text") else await _encoded(request.text, model)
    if not ids:
        raise InvalidRequestError.of("prompt", "is empty")
    if (highest := max(ids)) >= (size := model.served.vocabulary_size):
        raise InvalidRequestError.of("prompt.ids", f"{highest} is not below the vocabulary size {size}")
    return ids


async def _encoded(text: worker_pb2.TextPrompt, model: StockModel) -> list[int]:
    ids = await off_loop(OnLoop.TOKENIZER, len(text.text), model.encode, text.text, special=text.add_special_tokens)
    if not text.min_tokens <= len(ids) <= text.max_tokens:
        raise TokenCountError(f"the prompt's {len(ids)} tokens are not in [{text.min_tokens}, {text.max_tokens}]")
    return ids


def check_room(request: worker_pb2.WorkerServiceGenerateRequest, prompt: int, held: int, model: StockModel) -> int:
    """Tokens that its answer may have; refuses what fits not into the model's context, or not into a server's cache.

    Args:
        request: as workers take it.
        prompt: tokens of its prompt.
        held: tokens of the cache; 0 where it bounds nothing, or is not known.
        model: that answers.

    Raises:
        InvalidRequestError: naming the field, where no server of the model could take it.
        TokenCountError: where another may, once the tokens of its text are counted.
        OverloadedError: where another may, and this one did when it was picked.
    """
    context = model.served.context_length
    new = most_new_tokens(request, min(context, held or context) - prompt)
    problem = f"{prompt} prompt tokens and {new} new ones are too many"
    if prompt + new > context:
        raise InvalidRequestError.too_long_answer(problem, context)
    if held and prompt + new > held:
        fault = TokenCountError if request.HasField("text") else OverloadedError
        raise fault(f"{problem} for this server's KV cache, which holds {held}")
    return new


def to_contract(
    request: worker_pb2.WorkerServiceGenerateRequest, rid: str, prompt: list[int], new: int, model: StockModel
) -> Any:
    """The request, by the id ``rid``, for ``new`` tokens; what it leaves unset is the model's own, as of ours."""
    messages = contract().messages
    asked = inference_pb2.SamplingParams()
    asked.CopyFrom(request.sampling)
    model.served.defaults.fill(asked)
    top_k = asked.top_k if asked.HasField("top_k") and asked.top_k < model.served.vocabulary_size else -1
    sampling = messages.SamplingParams(
        temperature=asked.temperature,
        top_p=max(asked.top_p, _LEAST_TOP_P) if asked.HasField("top_p") else 1.0,
        top_k=top_k,
        min_p=asked.min_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        repetition_penalty=asked.repetition_penalty if asked.HasField("repetition_penalty") else 1.0,
        max_new_tokens=new,
        stop=asked.stop,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        n=1,
        ignore_eos=asked.ignore_eos,
        logit_bias={str(each.token_id): each.bias for each in asked.logit_bias},
        **(_held(asked.response_format) or ({"json_schema": call} if (call := held_to(request.chat)) else {})),
    )
    return messages.GenerateRequest(
        request_id=rid,
        tokenized=messages.TokenizedInput(input_ids=prompt),
        sampling_params=sampling,
        return_logprob=request.HasField("logprobs"),
        logprob_start_len=0 if request.logprobs.prompt else -1,
        top_logprobs_num=request.logprobs.top,
        stream=True,
    )


def _held(wanted: inference_pb2.ResponseFormat) -> dict[str, str]:
    form = wanted.WhichOneof("format")
    if form is None:
        return {}
    if form == "json_object":
        return {"json_schema": json.dumps({"type": "object"})}
    return {_NAMES[form]: getattr(wanted, form)}
