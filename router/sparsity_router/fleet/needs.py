"""What a request needs that not every worker has: a server of stock SGLang lacks some of it."""

from __future__ import annotations

from enum import Enum

from sparsity.v1 import worker_pb2
from sparsity_serving.fields.defaults import Defaults
from sparsity_serving.fields.response_format import has_expression

# Temperatures at which log-probabilities are the model's own: greedy requests are drawn at 1, too.
_PLAIN = (0.0, 1.0)


class Need(Enum):
    """By the field that asks for it."""

    TOOLS = "tools"
    SEED = "sampling.seed"
    FORMAT = "sampling.response_format"
    EXPRESSION = "sampling.response_format, of expressions,"
    LOGPROBS = "logprobs, at a temperature,"
    LEASE = "a lease"


def needs_of(request: worker_pb2.WorkerServiceGenerateRequest, defaults: Defaults) -> frozenset[Need]:
    """What a request needs beyond text, as its model is sampled by ``defaults``."""
    sampling, found = request.sampling, set()
    temperature = sampling.temperature if sampling.HasField("temperature") else defaults.temperature or 0.0
    if request.chat.tools:
        found.add(Need.TOOLS)
    if sampling.HasField("seed") and temperature > 0:
        found.add(Need.SEED)
    if sampling.HasField("response_format"):
        found.add(Need.EXPRESSION if has_expression(sampling.response_format) else Need.FORMAT)
    if request.HasField("logprobs") and temperature not in _PLAIN:
        found.add(Need.LOGPROBS)
    return frozenset(found)
