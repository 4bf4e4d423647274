"""What comes with a prompt: refused where it makes no sense, before anybody works on the request."""

from __future__ import annotations

from typing import Final

from sparsity.v1 import inference_pb2
from sparsity_policies.model import Tier
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_PRIORITY, check_flags, check_labels, check_name
from sparsity_serving.fields.logprobs import check_logprobs
from sparsity_serving.fields.served import Served
from sparsity_serving.fields.tools import check_tools
from sparsity_serving.sampling import MAX_ANSWERS, check_sampling, wanted_answers

_POLICY_BYTES: Final = 2**24
_AROUND: Final = 1024
_BESIDE: Final = 2**22
"""Bytes that may come with a prompt: all that is bounded by itself has some three quarters of them at most."""


def most_of_a_call(max_prompt_bytes: int) -> int:
    """Bytes that any call may have: a request with what is put around it, or decisions to run a draft over."""
    return max(_most_bytes(max_prompt_bytes), _POLICY_BYTES) + _AROUND


def _most_bytes(max_prompt_bytes: int) -> int:
    return 2 * max_prompt_bytes + _BESIDE


def check_size(request: inference_pb2.GenerateRequest, max_prompt_bytes: int) -> int:
    """Refuses a request that is too large whatever is in it, before anybody goes through that; else its bytes.

    Args:
        request: as the caller sent it.
        max_prompt_bytes: that its prompt may have; as token ids, or in a chat's fields, it may come in more.

    Raises:
        InvalidRequestError: where it is too large.
    """
    size, most = request.ByteSize(), _most_bytes(max_prompt_bytes)
    if size > most:
        raise InvalidRequestError.of("request", f"has {size} bytes; this router takes {most}: shorten the prompt")
    return size


def check_fields(request: inference_pb2.GenerateRequest, served: Served) -> None:
    """Checks context, id, priority, sampling, tools and what the answer is to carry.

    Args:
        request: as the caller sent it.
        served: the model.

    Raises:
        InvalidRequestError: naming the field.
    """
    context = request.context
    for name in ("domain", "task", "tenant", "session"):
        check_name(f"context.{name}", getattr(context, name))
    check_flags("context.flags", context.flags)
    check_labels("context.labels", context.labels)
    if context.max_tier and int(context.max_tier) not in list(Tier):
        raise InvalidRequestError.of("context.max_tier", f"{context.max_tier} is not a tier")
    check_name("request_id", request.request_id)
    if not 0 <= request.priority <= MAX_PRIORITY:
        raise InvalidRequestError.of("priority", f"must be in [0, {MAX_PRIORITY}], not {request.priority}")
    if not 1 <= wanted_answers(request) <= MAX_ANSWERS:
        raise InvalidRequestError.of("n", f"must be in [1, {MAX_ANSWERS}], not {request.n}")
    check_sampling(request.sampling, served.context_length, served.vocabulary_size)
    check_logprobs(request.logprobs)
    choice = request.tool_choice if request.HasField("tool_choice") else None
    check_tools(request.tools, choice, formatted=request.sampling.HasField("response_format"))
    if request.WhichOneof("prompt") != "chat":
        for name in ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort"):
            if name in {field.name for field, _ in request.ListFields()}:
                raise InvalidRequestError.of(name, "is for a chat; this prompt goes to the model as it is")
