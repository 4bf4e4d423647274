"""Requests as messages, from the values of :mod:`sparsity_client.request` or from plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_rpc.tiers import Tier

from sparsity_client.request import CalledTool, RawText, Request, Sampling, TokenIds
from sparsity_client.wire.chats import CHOICES, to_format, to_tool, to_turn

Prompt = str | Sequence[int] | inference_pb2.ChatPrompt


def to_message(request: Request) -> inference_pb2.GenerateRequest:
    """The message of a request.

    Raises:
        InvalidRequestError: naming a value that no request can carry.
    """
    prompt = request.prompt
    with _named("prompt"):
        if isinstance(prompt, str):
            message = inference_pb2.GenerateRequest(chat=user_turn(prompt))
        elif isinstance(prompt, RawText):
            message = inference_pb2.GenerateRequest(text=prompt.text)
        elif isinstance(prompt, TokenIds):
            message = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=prompt.ids))
        else:
            turns = inference_pb2.ChatPrompt(messages=map(to_turn, prompt))
            message = inference_pb2.GenerateRequest(chat=turns)
    _tell(message, request)
    return message


def _tell(message: inference_pb2.GenerateRequest, request: Request) -> None:
    """Sets all of a request but its prompt."""
    with _named("priority"):
        message.MergeFrom(inference_pb2.GenerateRequest(priority=request.priority))
    with _named("request_id"):
        message.MergeFrom(inference_pb2.GenerateRequest(request_id=request.request_id))
    with _named("model"):
        message.MergeFrom(inference_pb2.GenerateRequest(model=request.model))
    with _named("n"):
        message.MergeFrom(inference_pb2.GenerateRequest(n=request.n))
    with _named("tools"):
        message.tools.extend(map(to_tool, request.tools))
    with _named("tool_choice"):
        _choose(message, request)
    with _named("chat_template_kwargs"):
        if request.chat_template_kwargs:
            variables: dict[str, Any] = dict(request.chat_template_kwargs)
            message.chat_template_kwargs.update(variables)
    with _named("reasoning_effort"):
        message.MergeFrom(inference_pb2.GenerateRequest(reasoning_effort=request.reasoning_effort))
    with _named("logprobs"):
        if request.logprobs is not None:
            wanted = inference_pb2.LogprobOptions(top=request.logprobs.top, prompt=request.logprobs.prompt)
            message.logprobs.CopyFrom(wanted)
    with _named("context"):
        context = inference_pb2.RequestContext(
            domain=request.domain, task=request.task, flags=request.flags, labels=request.labels,
            tenant=request.tenant, session=request.session,
            max_tier=None if request.max_tier is None else inference_pb2.Tier.ValueType(request.max_tier),
            dense_reasoning=request.dense_reasoning or None,
        )  # fmt: skip
    asked = request.sampling
    with _named("sampling.max_new_tokens"):
        sampling = inference_pb2.SamplingParams(max_new_tokens=asked.max_new_tokens)
    with _named("sampling.top_k"):
        sampling.MergeFrom(inference_pb2.SamplingParams(top_k=asked.top_k))
    with _named("sampling.seed"):
        sampling.MergeFrom(inference_pb2.SamplingParams(seed=asked.seed))
    with _named("sampling.response_format"):
        if asked.response_format is not None:
            sampling.response_format.CopyFrom(to_format(asked.response_format))
    with _named("sampling.logit_bias"):
        for token_id, bias in asked.logit_bias.items():
            sampling.logit_bias.add(token_id=token_id, bias=bias)
    with _named("sampling"):
        others = inference_pb2.SamplingParams(
            temperature=asked.temperature,
            top_p=asked.top_p,
            min_p=asked.min_p,
            stop=asked.stop,
            ignore_eos=asked.ignore_eos,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            repetition_penalty=asked.repetition_penalty,
        )
        sampling.MergeFrom(others)
    message.context.CopyFrom(context)
    message.sampling.CopyFrom(sampling)


def _choose(message: inference_pb2.GenerateRequest, request: Request) -> None:
    choice = request.tool_choice
    if choice is None:
        return
    if isinstance(choice, CalledTool):
        message.tool_choice.name = choice.name
    elif choice in CHOICES:
        message.tool_choice.mode = CHOICES[choice]
    else:
        raise ValueError(f"{choice!r} is none of {', '.join(CHOICES)}")


def user_turn(text: str) -> inference_pb2.ChatPrompt:
    """A chat of one user message.

    Raises:
        InvalidRequestError: when it is no text.
    """
    with _named("prompt"):
        return inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content=text)])


def make_request(
    prompt: Prompt,
    *,
    domain: str | None = None,
    task: str | None = None,
    flags: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    tenant: str | None = None,
    session: str | None = None,
    max_tier: inference_pb2.Tier.ValueType | None = None,
    dense_reasoning: bool = False,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
) -> inference_pb2.GenerateRequest:
    """A request from plain values; text is sent as it is, a sequence of numbers as token ids.

    Raises:
        InvalidRequestError: naming a value that no request can carry.
    """
    with _named("prompt"):
        if isinstance(prompt, str):
            message = inference_pb2.GenerateRequest(text=prompt)
        elif isinstance(prompt, inference_pb2.ChatPrompt):
            message = inference_pb2.GenerateRequest(chat=prompt)
        else:
            message = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=prompt))
    told = Request(
        "", domain, task, flags, labels or {}, tenant, session,
        max_tier=None if max_tier is None else Tier(max_tier),
        dense_reasoning=dense_reasoning,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, stop=stop),
    )  # fmt: skip
    _tell(message, told)
    return message


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Names the field that would not take its value."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequestError.no_text(field, error) from error
    except (TypeError, ValueError) as error:
        raise InvalidRequestError.of(field, f"cannot be sent: {error}") from error
