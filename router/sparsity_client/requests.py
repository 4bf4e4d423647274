"""Requests from plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sparsity.errors import InvalidRequestError
from sparsity.v1 import inference_pb2

Prompt = str | Sequence[int] | inference_pb2.ChatPrompt


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
    with _named("context"):
        context = inference_pb2.RequestContext(
            domain=domain, task=task, flags=flags, labels=labels, tenant=tenant, session=session, max_tier=max_tier,
            dense_reasoning=dense_reasoning or None,
        )  # fmt: skip
    with _named("sampling.max_new_tokens"):
        sampling = inference_pb2.SamplingParams(max_new_tokens=max_new_tokens)
    with _named("sampling"):
        sampling.MergeFrom(inference_pb2.SamplingParams(temperature=temperature, stop=stop))
    request = inference_pb2.GenerateRequest(context=context, sampling=sampling)
    with _named("prompt"):
        if isinstance(prompt, str):
            request.text = prompt
        elif isinstance(prompt, inference_pb2.ChatPrompt):
            request.chat.CopyFrom(prompt)
        else:
            request.token_ids.ids.extend(prompt)
    return request


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Names the field that would not take its value."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequestError.no_text(field, error) from error
    except ValueError as error:
        raise InvalidRequestError.of(field, f"cannot be sent: {error}") from error
