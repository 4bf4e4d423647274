"""Answers in OpenAI's form: whole, or by server-sent events, with what attention they got in an object `sparsity`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sparsity.v1 import inference_pb2

from sparsity_router.gateway.likelihoods import Logprobs, of_chat, of_text

DONE: Final = b"data: [DONE]\n\n"
_GENERATED: Final = ("completion_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class Form:
    """What one endpoint's answers look like.

    Attributes:
        prefix: of ids.
        whole: the object's name.
        part: the name of an event's object.
        chat: whether the text is a message's.
    """

    prefix: str
    whole: str
    part: str
    chat: bool

    def delta(self, message: inference_pb2.GenerateResponse) -> dict[str, Any]:
        """What is new of a choice, without index and finish reason."""
        if not self.chat:
            return {"text": message.text}
        new: dict[str, Any] = {"reasoning_content": message.reasoning} if message.reasoning else {}
        new |= {"content": message.text} if message.text else {}
        # A worker puts what it has by then into one message, and OpenAI's clients join parts of different events alone.
        new |= {"tool_calls": [_call_part(call) for call in _by_index([message])]} if message.tool_calls else {}
        return {"delta": new}

    def full(self, whole: inference_pb2.GenerateResponse) -> dict[str, Any]:
        """A whole choice, likewise."""
        if not self.chat:
            return {"text": whole.text}
        calls = [_whole_call(call) for call in whole.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": whole.text or (None if calls else "")}
        message |= {"refusal": None} | ({"reasoning_content": whole.reasoning} if whole.reasoning else {})
        return {"message": message | ({"tool_calls": calls} if calls else {})}

    def logprobs(self, tokens: Logprobs, offset: int) -> dict[str, Any] | None:
        """Log-probabilities of tokens; None where none were asked for."""
        if not tokens:
            return None
        return of_chat(tokens) if self.chat else of_text(tokens, offset)


def _call_part(call: inference_pb2.ToolCallDelta) -> dict[str, Any]:
    """A part of a call; its first has the id and the name."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _whole_call(call: inference_pb2.ToolCallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


CHAT: Final = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", True)
COMPLETION: Final = Form("cmpl-", "text_completion", "text_completion", False)


def encoded(document: dict[str, Any]) -> bytes:
    """JSON of a document, without spaces; half of a surrogate pair, as in a caller's name of a field, stays escaped."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(document) + b"\n\n"


class Answer:
    """One request's answer.

    Args:
        form: of the endpoint.
        decision_id: which its id is made of.
        model: that answers.
        created: seconds since the epoch.
        answers: that there are to be.
        usage: whether its events tell of usage.
    """

    def __init__(
        self, form: Form, decision_id: str, model: str, created: int, answers: int = 1, *, usage: bool = False
    ) -> None:
        self._form = form
        self._usage = usage
        self._characters = [0] * answers
        self._ended: list[inference_pb2.Completion] = []
        self._head = {"id": form.prefix + decision_id, "created": created, "model": model}
        # Most events differ by their text alone.
        mark = "\0"
        plain = form.delta(inference_pb2.GenerateResponse(text=mark))
        before, after = self._event([self._choice(plain, None)]).split(json.dumps(mark).encode())
        self._before, self._after = before, after

    @staticmethod
    def _choice(
        new: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None, index: int = 0
    ) -> dict[str, Any]:
        return {"index": index, **new, "logprobs": logprobs, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], **beside: Any) -> bytes:
        beside |= {"usage": beside.get("usage")} if self._usage else {}
        return event({**self._head, "object": self._form.part, "choices": choices, **beside})

    def first(self) -> bytes:
        """The events that say who speaks, one for each answer; nothing for a text."""
        if not self._form.chat:
            return b""
        speaks = {"delta": {"role": "assistant", "content": ""}}
        return b"".join(self._event([self._choice(speaks, None, index=at)]) for at in range(len(self._characters)))

    def part(self, message: inference_pb2.GenerateResponse) -> bytes:
        """The event of what is new; nothing where nothing is."""
        text, index, told = message.text, message.choice, bool(message.logprobs)
        before = self._characters[index]
        self._characters[index] += len(text)
        if told or message.reasoning or message.tool_calls or (index and text):
            logprobs = self._form.logprobs(message.logprobs, before)
            return self._event([self._choice(self._form.delta(message), None, logprobs, index)])
        return b"".join((self._before, json.dumps(text, ensure_ascii=False).encode(), self._after)) if text else b""

    def last(self, message: inference_pb2.GenerateResponse) -> bytes:
        """The events that end an answer, and with the last one the stream."""
        completion = message.completion
        self._ended.append(completion)
        end: dict[str, Any] = {"delta": {}} if self._form.chat else {"text": ""}
        choice = self._choice(end, finish_reason(completion), index=message.choice)
        told = self._event([choice], sparsity=attention(completion))
        if len(self._ended) < len(self._characters):
            return told
        return told + (self._event([], usage=usage(self._ended)) if self._usage else b"") + DONE

    def whole(self, messages: Sequence[inference_pb2.GenerateResponse]) -> bytes:
        """The answers in one piece, of all their messages; of several, each has a `sparsity` of its own, too."""
        choices, ended = [], []
        for index in range(len(self._characters)):
            own = [message for message in messages if message.choice == index]
            found, completion = joined(own), own[-1].completion
            logprobs = self._form.logprobs(found.logprobs, 0)
            choices.append(self._choice(self._form.full(found), finish_reason(completion), logprobs, index))
            ended.append(completion)
            if len(self._characters) > 1:
                choices[-1]["sparsity"] = attention(completion)
        told = {"usage": usage(ended), "sparsity": attention(ended[0])}
        return encoded({**self._head, "object": self._form.whole, "choices": choices, **told})


def keep_one_call(message: inference_pb2.GenerateResponse) -> None:
    """Takes the parts of all calls but the first out of a message."""
    if any(part.index for part in message.tool_calls):
        first = [part for part in message.tool_calls if not part.index]
        del message.tool_calls[:]
        message.tool_calls.extend(first)


def joined(messages: Sequence[inference_pb2.GenerateResponse]) -> inference_pb2.GenerateResponse:
    """The messages of a stream as one: a call's parts are its whole."""
    whole = inference_pb2.GenerateResponse(text="".join(message.text for message in messages))
    whole.reasoning = "".join(message.reasoning for message in messages)
    for message in messages:
        whole.logprobs.extend(message.logprobs)
    whole.tool_calls.extend(_by_index(messages))
    return whole


def _by_index(messages: Iterable[inference_pb2.GenerateResponse]) -> list[inference_pb2.ToolCallDelta]:
    """The parts of calls in some messages, one for each call."""
    calls: dict[int, list[inference_pb2.ToolCallDelta]] = {}
    for message in messages:
        for part in message.tool_calls:
            calls.setdefault(part.index, []).append(part)
    return [
        inference_pb2.ToolCallDelta(
            index=index,
            id=next((part.id for part in parts if part.id), ""),
            name=next((part.name for part in parts if part.name), ""),
            arguments="".join(part.arguments for part in parts),
        )
        for index, parts in sorted(calls.items())
    ]


def finish_reason(completion: inference_pb2.Completion) -> str:
    """Why generation ended, in OpenAI's words."""
    return inference_pb2.FinishReason.Name(completion.finish_reason).removeprefix("FINISH_REASON_").lower()


def usage(completions: Sequence[inference_pb2.Completion]) -> dict[str, Any]:
    """Tokens of all answers; the prompt, which they share, counts once."""
    first = completions[0].usage
    new, thoughts = (sum(getattr(each.usage, name) for each in completions) for name in _GENERATED)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": first.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def attention(completion: inference_pb2.Completion) -> dict[str, Any]:
    """The decision, and what was attended: the fields of Completion that OpenAI's form has no place for."""
    decision, report = completion.decision, completion.sparsity
    told: dict[str, Any] = {
        "decision_id": decision.decision_id,
        "tier": _tier(decision.tier),
        "reason": inference_pb2.Reason.Name(decision.reason).removeprefix("REASON_").lower(),
        "policy": decision.policy,
        "policy_revision": decision.policy_revision,
        "policy_tier": _tier(decision.policy_tier),
        "matched_rule": decision.matched_rule,
        "explanation": decision.explanation,
        "dense_reasoning": decision.dense_reasoning,
        "worker_id": completion.worker_id,
        "report": None,
    }
    if not completion.HasField("sparsity"):
        told["unreported"] = completion.unreported
        return told
    told["report"] = {
        "tier": _tier(report.tier),
        "profile": report.profile,
        "backend": report.backend,
        "prefill_density": report.prefill_density,
        "decode_density": report.decode_density,
        "coverage": report.coverage,
        "min_layer_coverage": report.min_layer_coverage,
        "sparse_kernel_calls": report.sparse_kernel_calls,
        "kernel_calls": report.kernel_calls,
        "dense_reasoning_tokens": report.dense_reasoning_tokens,
    }
    if report.HasField("measured_coverage"):
        told["report"] |= {"measured_coverage": report.measured_coverage, "measured_rows": report.measured_rows}
    return told


def _tier(tier: inference_pb2.Tier.ValueType) -> str:
    return inference_pb2.Tier.Name(tier).removeprefix("TIER_").lower()
