"""The messages of answers as values."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import EnumDescriptor
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import StreamBrokenError
from sparsity_rpc.tiers import Tier

from sparsity_client.answer import (
    Answer,
    Chunk,
    Decision,
    Explanation,
    LayerReport,
    RiskFinding,
    ScanMatch,
    Signals,
    SparsityReport,
    Step,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sparsity_client.request import ToolCall


class Gathered:
    """A stream's messages, as they come. Where nothing else is said it is of the first answer."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._completions: dict[int, inference_pb2.Completion] = {}

    def add(self, response: inference_pb2.GenerateResponse) -> Chunk:
        """The next message."""
        if response.HasField("completion"):
            self._completions[response.choice] = response.completion
        chunk = Chunk(
            response.text,
            tuple(response.token_ids),
            response.reasoning,
            tuple(ToolCallDelta(part.index, part.id, part.name, part.arguments) for part in response.tool_calls),
            tuple(map(_logprob, response.logprobs)),
            tuple(map(_logprob, response.prompt_logprobs)),
            response.choice,
        )
        self._chunks.append(chunk)
        return chunk

    def _of(self, choice: int) -> list[Chunk]:
        return [chunk for chunk in self._chunks if chunk.choice == choice]

    def text(self, choice: int = 0) -> str:
        """What was said so far."""
        return "".join(chunk.text for chunk in self._of(choice))

    def reasoning(self, choice: int = 0) -> str:
        """What was thought so far."""
        return "".join(chunk.reasoning for chunk in self._of(choice))

    def tool_calls(self, choice: int = 0) -> tuple[ToolCall, ...]:
        """What was called so far."""
        return _whole(part for chunk in self._of(choice) for part in chunk.tool_calls)

    def logprobs(self, choice: int = 0) -> tuple[TokenLogprob, ...]:
        """How likely the tokens so far were."""
        return tuple(each for chunk in self._of(choice) for each in chunk.logprobs)

    def answers(self) -> tuple[Answer, ...]:
        """All answers that have begun.

        Raises:
            StreamBrokenError: when the stream ended before the last message of one.
        """
        return tuple(self.answer(choice) for choice in sorted({0, *(chunk.choice for chunk in self._chunks)}))

    def answer(self, choice: int = 0) -> Answer:
        """All of an answer.

        Raises:
            StreamBrokenError: when the stream ended before its last message.
        """
        found = self._completions.get(choice)
        if found is None:
            raise StreamBrokenError("the stream ended before its last message")
        usage = found.usage
        return Answer(
            text=self.text(choice),
            token_ids=tuple(token for chunk in self._of(choice) for token in chunk.token_ids),
            finish_reason=_word(inference_pb2.FinishReason.DESCRIPTOR, found.finish_reason, "FINISH_REASON_"),
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                time_to_first_token=usage.time_to_first_token.ToNanoseconds() / 1e9,
                total_time=usage.total_time.ToNanoseconds() / 1e9,
                reasoning_tokens=usage.reasoning_tokens,
            ),
            decision=_decision(found.decision),
            sparsity=_report(found.sparsity) if found.HasField("sparsity") else None,
            unreported=found.unreported,
            worker_id=found.worker_id,
            model=found.model,
            reasoning=self.reasoning(choice),
            tool_calls=self.tool_calls(choice),
            logprobs=self.logprobs(choice),
            prompt_logprobs=tuple(each for chunk in self._of(choice) for each in chunk.prompt_logprobs),
        )


def explanation(message: inference_pb2.ExplainResponse) -> Explanation:
    """How a decision came to be."""
    return Explanation(
        signals=_signals(message.signals),
        decision=_decision(message.decision),
        steps=tuple(Step(step.check, step.matched, step.detail, _tier(step.tier)) for step in message.steps),
        alternatives=tuple(message.alternatives),
        findings=tuple(
            RiskFinding(
                each.domain,
                each.probability,
                each.threshold,
                each.outcome,
                each.start,
                each.end,
                each.first_opinion if each.HasField("first_opinion") else None,
                each.second_opinion if each.HasField("second_opinion") else None,
            )
            for each in message.findings
        ),
        matches=tuple(
            ScanMatch(each.domain, each.flag, each.expression, each.form, each.start, each.end)
            for each in message.matches
        ),
    )


def _logprob(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        message.token_id,
        message.token,
        message.logprob if message.HasField("logprob") else None,
        tuple(TokenAlternative(other.token_id, other.token, other.logprob) for other in message.top),
    )


def _whole(parts: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """The calls that parts make up, in the order that they began."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        begun = calls.get(part.index, ToolCall("", "", ""))
        calls[part.index] = ToolCall(begun.id or part.id, begun.name or part.name, begun.arguments + part.arguments)
    return tuple(calls.values())


def _decision(message: inference_pb2.Decision) -> Decision:
    return Decision(
        decision_id=message.decision_id,
        tier=Tier(message.tier),
        reason=_word(inference_pb2.Reason.DESCRIPTOR, message.reason, "REASON_"),
        matched_rule=message.matched_rule,
        policy=message.policy,
        policy_revision=message.policy_revision,
        policy_tier=Tier(message.policy_tier),
        explanation=message.explanation,
        dense_reasoning=message.dense_reasoning,
    )


def _report(message: inference_pb2.SparsityReport) -> SparsityReport:
    return SparsityReport(
        tier=Tier(message.tier),
        profile=message.profile,
        backend=message.backend,
        prefill_density=message.prefill_density,
        decode_density=message.decode_density,
        coverage=message.coverage,
        min_layer_coverage=message.min_layer_coverage,
        layers=tuple(LayerReport(one.prefill_density, one.decode_density, one.coverage) for one in message.layers),
        sparse_kernel_calls=message.sparse_kernel_calls,
        kernel_calls=message.kernel_calls,
        dense_reasoning_tokens=message.dense_reasoning_tokens,
        measured_coverage=message.measured_coverage if message.HasField("measured_coverage") else None,
        measured_rows=message.measured_rows,
    )


def _signals(message: inference_pb2.Signals) -> Signals:
    return Signals(
        min_tokens=message.min_tokens,
        max_tokens=message.max_tokens,
        prompt_bytes=message.prompt_bytes,
        scanned_bytes=message.scanned_bytes,
        domain=message.domain,
        domain_source=_word(inference_pb2.DomainSource.DESCRIPTOR, message.domain_source, "DOMAIN_SOURCE_"),
        declared_domain=message.declared_domain,
        also_found=tuple(message.also_found),
        model=message.model,
        confidence=message.confidence if message.HasField("confidence") else None,
        flags=tuple(message.flags),
        task=message.task,
        labels=dict(message.labels),
        tenant=message.tenant,
        session=message.session,
        max_tier=_tier(message.max_tier),
        session_tier=_tier(message.session_tier),
        dense_reasoning=message.dense_reasoning,
        classifier_error=message.classifier_error,
    )


def _tier(value: int) -> Tier | None:
    return Tier(value) if value else None


def _word(kind: EnumDescriptor, value: int, prefix: str) -> str:
    """An enumeration's word, empty where it is unset; a number that this version does not know stands for itself."""
    known = kind.values_by_number.get(value)
    return (known.name.removeprefix(prefix) if known is not None else str(value)) if value else ""
