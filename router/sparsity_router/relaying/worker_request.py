"""A decided request in the terms of workers."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.fields.tools import shown
from sparsity_serving.sampling import new_tokens

from sparsity_router.decisions.decider import Decided
from sparsity_router.fleet.needs import Need, needs_of
from sparsity_router.fleet.picking import Want


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A request as workers take it; tier and lease come with the worker.

    Attributes:
        message: its id is the decision's, which no other has: callers choose theirs without knowing of each other.
        session: the conversation; empty for none.
        decided: where it comes from.
    """

    message: worker_pb2.WorkerServiceGenerateRequest
    session: str
    decided: Decided

    @classmethod
    def of(
        cls, request: inference_pb2.GenerateRequest, decided: Decided, most: int = 0, answer: int = 0
    ) -> WorkerRequest:
        """Puts a decided request into the terms of workers.

        Args:
            request: as its caller sent it.
            decided: what became of it.
            most: tokens of an answer, where the request does not say; 0 leaves it to the worker.
            answer: which of the answers that it asks for is asked for, from 0 on.
        """
        message = worker_pb2.WorkerServiceGenerateRequest(
            request_id=f"{decided.decision_id}-{answer}" if answer else decided.decision_id,
            sampling=request.sampling,
            priority=request.priority,
            dense_reasoning=decided.review.decision.dense_reasoning,
            default_max_new_tokens=most,
        )
        if request.sampling.HasField("seed"):
            message.sampling.seed = (request.sampling.seed + answer) % 2**64
        prompt = decided.prompt
        if prompt.ids:
            message.prompt.ids.extend(prompt.ids)
        else:
            message.text.text, message.text.add_special_tokens = prompt.text, prompt.special
            message.text.min_tokens, message.text.max_tokens = prompt.interval
        if request.HasField("logprobs"):
            message.logprobs.CopyFrom(request.logprobs)
            message.logprobs.prompt &= not answer
        if request.HasField("chat"):
            chat = message.chat
            chat.SetInParent()
            chat.tools.extend(shown(request.tools, request.tool_choice))
            if chat.tools and request.HasField("tool_choice"):
                chat.tool_choice.CopyFrom(request.tool_choice)
        if request.context.tenant:
            message.cache_salt = request.context.tenant
        return cls(message, request.context.session, decided)

    def want(self) -> Want:
        """What picking looks at: the prompt as the worker gets it, for its prefix."""
        message = self.message
        prompt = message.text.text.encode() if message.HasField("text") else array("I", message.prompt.ids).tobytes()
        return Want(prompt, message.cache_salt, self.session)


async def read_needs(request: worker_pb2.WorkerServiceGenerateRequest) -> frozenset[Need]:
    """What a request needs that not every worker has; the schemas of a large one are read beside the event loop."""
    read = request.chat.ByteSize() + request.sampling.response_format.ByteSize()
    return await off_loop(OnLoop.TOKENIZER, read, needs_of, request)


def outstanding_tokens(request: worker_pb2.WorkerServiceGenerateRequest) -> int:
    """Tokens that a worker has to work on for a request, at most, if its answer has no more than it says."""
    return len(request.prompt.ids) + request.text.max_tokens + new_tokens(request.sampling)
