"""What a span says of a request to a model and of its answer, by the GenAI conventions; nothing of their texts."""

from __future__ import annotations

from opentelemetry.util.types import AttributeValue
from sparsity.v1 import inference_pb2

from sparsity_rpc import semconv

# Sampling that a caller asks for by number; stop strings are text.
_SAMPLING = {
    "max_new_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "temperature": semconv.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": semconv.GEN_AI_REQUEST_TOP_P,
    "top_k": semconv.GEN_AI_REQUEST_TOP_K,
    "frequency_penalty": semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.GEN_AI_REQUEST_PRESENCE_PENALTY,
}
_MOST_INTEGER = 2**63 - 1


def operation(*, is_chat: bool) -> str:
    """The operation's name: messages are a chat, a text or token ids a text completion."""
    return semconv.CHAT if is_chat else semconv.TEXT_COMPLETION


def operation_of(request: inference_pb2.GenerateRequest) -> str:
    """What a caller asks for."""
    return operation(is_chat=request.HasField("chat"))


def requested(request: inference_pb2.GenerateRequest, model: str) -> dict[str, AttributeValue]:
    """A caller's request.

    Args:
        request: as it came.
        model: that is asked; empty where the caller names none.
    """
    sampling = request.sampling
    told: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION_NAME: operation_of(request),
        semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER,
        # The service has no other form.
        semconv.GEN_AI_REQUEST_STREAM: True,
    }
    if model:
        told[semconv.GEN_AI_REQUEST_MODEL] = model
    if request.context.session:
        told[semconv.GEN_AI_CONVERSATION_ID] = request.context.session
    if request.n > 1:
        told[semconv.GEN_AI_REQUEST_CHOICE_COUNT] = request.n
    if sampling.HasField("response_format"):
        form = sampling.response_format.WhichOneof("format") or ""
        told[semconv.GEN_AI_OUTPUT_TYPE] = semconv.JSON if form.startswith("json") else semconv.TEXT
    # OTLP's integers have a sign.
    if sampling.HasField("seed") and sampling.seed <= _MOST_INTEGER:
        told[semconv.GEN_AI_REQUEST_SEED] = sampling.seed
    told |= {_SAMPLING[field.name]: value for field, value in sampling.ListFields() if field.name in _SAMPLING}
    return told


def completed(completion: inference_pb2.Completion) -> dict[str, AttributeValue]:
    """An answer: its model where it is told, why it ended, and its tokens."""
    usage = completion.usage
    told: dict[str, AttributeValue] = {
        semconv.GEN_AI_USAGE_INPUT_TOKENS: usage.prompt_tokens,
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: usage.completion_tokens,
        semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_tokens,
    }
    if usage.reasoning_tokens:
        told[semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS] = usage.reasoning_tokens
    if completion.model:
        told[semconv.GEN_AI_RESPONSE_MODEL] = completion.model
    if completion.finish_reason in inference_pb2.FinishReason.values()[1:]:
        reason = inference_pb2.FinishReason.Name(completion.finish_reason).removeprefix("FINISH_REASON_")
        told[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = [reason.lower()]
    return told
