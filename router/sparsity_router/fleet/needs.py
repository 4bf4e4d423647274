"""What a request needs that not every worker has: a server of stock SGLang lacks some of it."""

from __future__ import annotations

import json
from enum import Enum
from typing import Final, NamedTuple

from sparsity.v1 import worker_pb2
from sparsity_serving.fields.response_format import expression_in, has_expression
from sparsity_serving.fields.tools import demanded
from sparsity_serving.sampling import new_tokens

# Temperatures at which log-probabilities are the model's own: greedy requests are drawn at 1, too.
_PLAIN = (0.0, 1.0)


class Need(Enum):
    """The field that asks for it, and what it is."""

    TOOLS = ("tools", "calls of tools as this model writes them")
    STRICT = ("tools", "calls that are held to their parameters")
    PATTERN = ("tools", "calls that are held to expressions")
    DEMAND = ("tool_choice", "calls that are demanded")
    SEED = ("sampling.seed", "seeds")
    FORMAT = ("sampling.response_format", "formats")
    EXPRESSION = ("sampling.response_format", "formats with expressions")
    LOGPROBS = ("logprobs", "log-probabilities before temperature")
    ROOM = ("sampling.max_new_tokens", "a KV cache for as many tokens as the prompt and the answer have")
    LEASE = ("request", "leases")

    @property
    def field(self) -> str:
        """Of a request."""
        return self.value[0]

    @property
    def what(self) -> str:
        """In words."""
        return self.value[1]


class Needs(NamedTuple):
    """What a request needs that some worker lacks.

    Attributes:
        fields: of it.
        beyond: tokens of the largest KV cache that is too small for it; 0 for none.
    """

    fields: frozenset[Need] = frozenset()
    beyond: int = 0

    def met(self, lacks: frozenset[Need], room: int) -> bool:
        """Whether who ``lacks`` these, with a KV cache of ``room`` tokens, 0 where it bounds none, can have it."""
        return not self.fields & lacks and (not room or room > self.beyond)


NO_NEEDS: Final = Needs()


def least_tokens(request: worker_pb2.WorkerServiceGenerateRequest) -> int:
    """Tokens that a request comes to at least: a text's are known to within an interval."""
    return len(request.prompt.ids) + request.text.min_tokens + new_tokens(request.sampling)


def needs_of(request: worker_pb2.WorkerServiceGenerateRequest) -> frozenset[Need]:
    """What a request needs beyond text; its sampling holds the defaults. Reads its schemas: they may be long."""
    sampling, found = request.sampling, set()
    temperature = sampling.temperature
    if request.chat.tools:
        found |= {Need.TOOLS, *_of_tools(request.chat)}
    if sampling.HasField("seed") and temperature > 0:
        found.add(Need.SEED)
    if sampling.HasField("response_format"):
        found |= {Need.FORMAT, *([Need.EXPRESSION] if has_expression(sampling.response_format) else [])}
    if request.HasField("logprobs") and temperature not in _PLAIN:
        found.add(Need.LOGPROBS)
    return frozenset(found)


def _of_tools(chat: worker_pb2.ChatParsing) -> set[Need]:
    """A call that is demanded is held to a grammar; one that may be made is, where its tool is strict."""
    if not demanded(chat.tool_choice):
        return {Need.STRICT} if any(tool.strict for tool in chat.tools) else set()
    schemas = (json.loads(tool.parameters) for tool in chat.tools if tool.parameters)
    return {Need.DEMAND, *([Need.PATTERN] if any(map(expression_in, schemas)) else [])}
