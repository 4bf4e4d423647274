"""What an answer may be held to: checked as far as that goes without the engine's grammars."""

from __future__ import annotations

import json
from typing import Any, Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError

from sparsity_serving.fields.documents import MAX_DOCUMENT, check_counts, read_object, texts

MAX_REGEX: Final = 2048
"""Characters; what they come to is compiled by the engine."""
_EXPRESSIONS: Final = {"pattern": str, "patternProperties": dict}


def check_response_format(sampling: inference_pb2.SamplingParams, field: str = "sampling.response_format") -> None:
    """Checks what an answer is to look like, where it is to look like anything.

    Args:
        sampling: as the caller sent it.
        field: path of its `response_format`.

    Raises:
        InvalidRequestError: naming the form, or what stands against it.
    """
    if not sampling.HasField("response_format"):
        return
    wanted = sampling.response_format
    form = wanted.WhichOneof("format")
    if form is None:
        raise InvalidRequestError.of(field, "is empty; set json_schema, regex, grammar or json_object")
    path = f"{field}.{form}"
    if form == "json_object":
        if not wanted.json_object:
            raise InvalidRequestError.of(path, "is false; leave the format out where any text will do")
    elif form == "json_schema":
        check_counts(path, read_object(path, wanted.json_schema))
    elif form == "regex":
        if not 1 <= len(wanted.regex) <= MAX_REGEX:
            problem = f"has {len(wanted.regex)} characters; it must have 1 to {MAX_REGEX}"
            raise InvalidRequestError.of(path, problem)
    elif not 1 <= (size := len(wanted.grammar.encode())) <= MAX_DOCUMENT:
        raise InvalidRequestError.of(path, f"has {size} bytes; it must have 1 to {MAX_DOCUMENT}")
    if "\0" in format_text(sampling):
        # The engine's grammars end with the process at one.
        raise InvalidRequestError.of(path, "has a character 0; leave it out")
    if sampling.ignore_eos:
        raise InvalidRequestError.of("sampling.ignore_eos", f"stands against {field}: an answer ends with its format")


def format_text(sampling: inference_pb2.SamplingParams) -> str:
    """What is written in a format, as it reads without JSON's escapes; empty without one."""
    wanted = sampling.response_format
    if wanted.json_schema:
        return "\n".join(texts(read_object("sampling.response_format.json_schema", wanted.json_schema)))
    return wanted.regex or wanted.grammar


def has_expression(wanted: inference_pb2.ResponseFormat) -> bool:
    """Whether a format, checked before, holds an answer to an expression or a grammar, some of which take minutes."""
    if wanted.WhichOneof("format") == "json_schema":
        return bool(expression_in(json.loads(wanted.json_schema)))
    return bool(wanted.regex or wanted.grammar)


def expression_in(document: Any) -> str:
    """The keyword of a schema that holds an answer to a regular expression; empty without one."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            # A property may have such a name; what it holds is a schema then.
            found = next((name for name, kind in _EXPRESSIONS.items() if isinstance(each.get(name), kind)), "")
            if found:
                return found
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return ""
