"""Reads what the answer is held to, and what of its tokens is told."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.sampling import MAX_BIASES

from sparsity_router.gateway.asking import Asked
from sparsity_router.gateway.parameters import at_most, flag, kind, only, text, whole
from sparsity_router.gateway.tools import document

_MOST_ID = 2**32 - 1


def response_format(asked: Asked, value: Any, name: str) -> None:
    """Reads plain text, any JSON object, or JSON by a schema."""
    form = value.get("type") if isinstance(value, dict) else None
    if form not in ("text", "json_object", "json_schema"):
        raise InvalidRequestError.of(f"{name}.type", "must be text, json_object, or json_schema with its `json_schema`")
    only(value, {"type", "json_schema"}, name)
    if form == "json_object":
        _once(asked, name).json_object = True
    elif form == "json_schema":
        own, schema = f"{name}.json_schema", value.get("json_schema")
        if not isinstance(schema, dict):
            raise InvalidRequestError.of(own, f"must be an object, not {kind(schema)}")
        # A name and a description are for people, and every answer is held to its schema word for word.
        only(schema, {"name", "description", "schema", "strict"}, own)
        _once(asked, name).json_schema = document(schema.get("schema"), f"{own}.schema")
        asked.names["sampling.response_format.json_schema"] = f"{own}.schema"


def regex(asked: Asked, value: Any, name: str) -> None:
    """Reads a regular expression that the whole answer matches."""
    _once(asked, name).regex = text(value, name)
    asked.names["sampling.response_format.regex"] = name


def ebnf(asked: Asked, value: Any, name: str) -> None:
    """Reads a grammar that the answer is of."""
    _once(asked, name).grammar = text(value, name)
    asked.names["sampling.response_format.grammar"] = name


def _once(asked: Asked, name: str) -> inference_pb2.ResponseFormat:
    wanted = asked.message.sampling.response_format
    if wanted.WhichOneof("format"):
        raise InvalidRequestError.of(name, "stands against another format: send one of response_format, regex and ebnf")
    return wanted


def logit_bias(asked: Asked, value: Any, name: str) -> None:
    """Reads biases by token ids, which are texts in JSON."""
    if not isinstance(value, dict):
        raise InvalidRequestError.of(name, f"must be an object, not {kind(value)}")
    at_most(value, MAX_BIASES, name)
    for token, bias in value.items():
        own = f"{name}.{token[:32]}"
        if not token.isascii() or not token.isdecimal() or len(token) > 10 or int(token) > _MOST_ID:
            raise InvalidRequestError.of(own, "must be a token id")
        if not isinstance(bias, (int, float)) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise InvalidRequestError.of(own, "must be a number in [-100, 100]")
        asked.message.sampling.logit_bias.add(token_id=int(token), bias=bias)


def logprobs(asked: Asked, value: Any, name: str) -> None:
    """Reads whether a chat's tokens are told with their log-probabilities."""
    if flag(value, name):
        asked.message.logprobs.SetInParent()


def top_logprobs(asked: Asked, value: Any, name: str) -> None:
    """Reads how many alternatives are told of each token."""
    asked.message.logprobs.top = whole(value, name)
    asked.names["logprobs.top"] = name


def template_kwargs(asked: Asked, value: Any, name: str) -> None:
    """Reads variables of the model's chat template."""
    # Bounded before it is read: nothing else of the door works in Python on each of its values.
    document(value, name)
    try:
        json_format.ParseDict(value, asked.message.chat_template_kwargs)
    # A number of more digits than a float has room for, too.
    except (json_format.ParseError, RecursionError, OverflowError) as error:
        raise InvalidRequestError.of(name, f"cannot be read: {error}") from error


def reasoning_effort(asked: Asked, value: Any, name: str) -> None:
    """Reads how much the model thinks."""
    asked.message.reasoning_effort = text(value, name)
