"""Requests from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsity.v1 import inference_pb2

Prompt = str | Sequence[int] | inference_pb2.ChatPrompt


def user_turn(text: str) -> inference_pb2.ChatPrompt:
    """A chat of one user message."""
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
    """A request from plain values; text is sent as it is, a sequence of numbers as token ids."""
    context = inference_pb2.RequestContext(
        domain=domain, task=task, flags=flags, labels=labels, tenant=tenant, session=session, max_tier=max_tier,
        dense_reasoning=dense_reasoning or None,
    )  # fmt: skip
    sampling = inference_pb2.SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, stop=stop)
    request = inference_pb2.GenerateRequest(context=context, sampling=sampling)
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, inference_pb2.ChatPrompt):
        request.chat.CopyFrom(prompt)
    else:
        request.token_ids.ids.extend(prompt)
    return request
