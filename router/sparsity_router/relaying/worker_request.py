"""A decided request in the terms of workers."""

from __future__ import annotations

from array import array

from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_policies.model import Decision

from sparsity_router.fleet.picking import Want
from sparsity_router.prompts.classified import Classified


def worker_request(
    request: inference_pb2.GenerateRequest, classified: Classified, decision: Decision, decision_id: str
) -> worker_pb2.WorkerServiceGenerateRequest:
    """The request in the worker's terms; tier and lease come with the worker.

    Its id is the decision's, which no other has: callers choose theirs without knowing of each other.
    """
    inner = worker_pb2.WorkerServiceGenerateRequest(
        request_id=decision_id,
        sampling=request.sampling,
        priority=request.priority,
        dense_reasoning=decision.dense_reasoning,
    )
    prompt = classified.prompt
    if prompt.ids:
        inner.prompt.ids.extend(prompt.ids)
    else:
        low, high = prompt.interval
        inner.text.text, inner.text.add_special_tokens = prompt.text, prompt.special
        inner.text.min_tokens, inner.text.max_tokens = low, high
    if request.context.tenant:
        inner.cache_salt = request.context.tenant
    return inner


def wanted(inner: worker_pb2.WorkerServiceGenerateRequest, request: inference_pb2.GenerateRequest) -> Want:
    """What picking looks at: the prompt as the worker gets it, for its prefix."""
    prompt = inner.text.text.encode() if inner.HasField("text") else array("I", inner.prompt.ids).tobytes()
    return Want(prompt, inner.cache_salt, request.context.session)
