"""What comes with a prompt: refused where it makes no sense, before anybody works on the request."""

from __future__ import annotations

from sparsity.v1 import inference_pb2
from sparsity_policies.model import Tier
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.bounds import MAX_PRIORITY, check_flags, check_labels, check_name
from sparsity_serving.fields.logprobs import check_logprobs
from sparsity_serving.fields.served import Served
from sparsity_serving.fields.tools import check_tools
from sparsity_serving.sampling import check_sampling


def check_fields(request: inference_pb2.GenerateRequest, served: Served) -> None:
    """Checks model, context, id, priority, sampling, tools and what the answer is to carry.

    Args:
        request: as the caller sent it.
        served: the model.

    Raises:
        InvalidRequestError: naming the field.
    """
    served.check_asked(request)
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
    check_sampling(request.sampling, served.context_length, served.vocabulary_size)
    check_logprobs(request.logprobs)
    choice = request.tool_choice if request.HasField("tool_choice") else None
    check_tools(request.tools, choice, formatted=request.sampling.HasField("response_format"))
    if request.WhichOneof("prompt") != "chat":
        for name in ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort"):
            if name in {field.name for field, _ in request.ListFields()}:
                raise InvalidRequestError.of(name, "is for a chat; this prompt goes to the model as it is")
