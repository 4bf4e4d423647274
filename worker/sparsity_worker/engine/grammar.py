"""What an answer is held to, in SGLang's terms, and whether its grammars can be made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import EngineError, InvalidRequestError, SparsityError
from sparsity_serving.fields.response_format import expression_in

FIELD: Final = "sampling.response_format"
_NAMES: Final = {"json_schema": "json_schema", "json_object": "json_schema", "regex": "regex", "grammar": "ebnf"}
_ANY_OBJECT: Final = json.dumps({"type": "object"})
# How SGLang's scheduler begins to say that it could not compile a grammar, not in time, or none at all.
_REFUSALS: Final = (
    *("Failed to compile", "Grammar preprocessing timed out", "Grammar-based generation"),
    # What was drawn is none of what it leaves, because it leaves nothing.
    "Grammar accept_token failed",
)
_NOT_TAKEN: Final = "no expressions are taken of callers here, because some take minutes a token (--allow-expressions)"
# Where in XGrammar's source a fault was found.
_PLACE: Final = re.compile(r"^\[[\d:]+\] \S+: ")


def constraint(wanted: inference_pb2.ResponseFormat) -> dict[str, str]:
    """The sampling parameter that holds an answer to a format; none without one."""
    form = wanted.WhichOneof("format")
    if form is None:
        return {}
    return {_NAMES[form]: _ANY_OBJECT if form == "json_object" else getattr(wanted, form)}


def check_grammar(wanted: inference_pb2.ResponseFormat, *, expressions: bool) -> None:
    """Reads a schema, expression or grammar as the engine will; that it fits the vocabulary is the engine's to find.

    Args:
        wanted: the format.
        expressions: whether regular expressions and grammars are taken, in schemas too.

    Raises:
        InvalidRequestError: naming the field, where no grammar can be made of it.
    """
    form = wanted.WhichOneof("format")
    if form == "json_schema":
        check_schema(f"{FIELD}.{form}", wanted.json_schema, expressions=expressions)
    elif form in ("regex", "grammar"):
        if not expressions:
            raise InvalidRequestError.of(f"{FIELD}.{form}", _NOT_TAKEN)
        with _readable(f"{FIELD}.{form}") as xgrammar:
            read = xgrammar.Grammar.from_regex if form == "regex" else xgrammar.Grammar.from_ebnf
            read(getattr(wanted, form))


def check_schema(field: str, text: str, *, expressions: bool) -> None:
    """Reads a JSON schema as the engine will.

    Args:
        field: that holds it.
        text: the schema.
        expressions: whether regular expressions are taken in it.

    Raises:
        InvalidRequestError: naming ``field``, where no grammar can be made of it, or one that may take too long.
    """
    document = json.loads(text)
    if not expressions and (name := expression_in(document)):
        raise InvalidRequestError.of(field, f"{name}: {_NOT_TAKEN}")
    with _readable(field) as xgrammar:
        from sglang.srt.constrained.json_schema_validation import (
            UnsupportedJSONSchemaFeature,
            validate_xgrammar_json_schema,
        )

        try:
            validate_xgrammar_json_schema(document)
        except UnsupportedJSONSchemaFeature as error:
            raise ValueError(error) from error
        xgrammar.Grammar.from_json_schema(text)


@contextmanager
def _readable(field: str) -> Iterator[Any]:
    """XGrammar, whose faults are those of ``field``."""
    try:
        xgrammar = import_module("xgrammar")
    except ImportError as error:
        problem = "cannot be kept to here: this worker was installed without grammars"
        raise InvalidRequestError.of(field, problem) from error
    try:
        yield xgrammar
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidRequestError.of(field, f"cannot be used: {_told(error)}") from error


def abort(reason: str) -> SparsityError:
    """Why the engine ended a request on its own: by the request's fault, or by its own."""
    if reason.startswith(_REFUSALS):
        return InvalidRequestError.of(FIELD, f"cannot be used: {reason[:512]}")
    return EngineError(f"engine aborted the request: {reason}")


def _told(error: Exception) -> str:
    return _PLACE.sub("", str(error)).strip()[:512]
