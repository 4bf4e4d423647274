"""What an answer is held to, in SGLang's terms, and whether its grammars can be made."""

from __future__ import annotations

import json
import re
from typing import Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import EngineError, InvalidRequestError, SparsityError

FIELD: Final = "sampling.response_format"
_NAMES: Final = {"json_schema": "json_schema", "json_object": "json_schema", "regex": "regex", "grammar": "ebnf"}
_ANY_OBJECT: Final = json.dumps({"type": "object"})
# How SGLang's scheduler begins to say that it could not compile a grammar, not in time, or none at all.
_REFUSALS: Final = ("Failed to compile", "Grammar preprocessing timed out", "Grammar-based generation")
# Where in XGrammar's source a fault was found.
_PLACE: Final = re.compile(r"^\[[\d:]+\] \S+: ")


def constraint(wanted: inference_pb2.ResponseFormat) -> dict[str, str]:
    """The sampling parameter that holds an answer to a format; none without one."""
    form = wanted.WhichOneof("format")
    if form is None:
        return {}
    return {_NAMES[form]: _ANY_OBJECT if form == "json_object" else getattr(wanted, form)}


def check_grammar(wanted: inference_pb2.ResponseFormat) -> None:
    """Reads a schema, expression or grammar as the engine will; that it fits the vocabulary is the engine's to find.

    Raises:
        InvalidRequestError: naming the field, where no grammar can be made of it.
    """
    try:
        from sglang.srt.constrained.json_schema_validation import (
            UnsupportedJSONSchemaFeature,
            validate_xgrammar_json_schema,
        )
        from xgrammar import Grammar
    except ImportError as error:
        raise InvalidRequestError.of(
            FIELD, "cannot be kept to here: this worker was installed without grammars"
        ) from error
    form = wanted.WhichOneof("format")
    try:
        if form == "json_schema":
            validate_xgrammar_json_schema(json.loads(wanted.json_schema))
            Grammar.from_json_schema(wanted.json_schema)
        elif form == "regex":
            Grammar.from_regex(wanted.regex)
        elif form == "grammar":
            Grammar.from_ebnf(wanted.grammar)
    except (RuntimeError, ValueError, TypeError, UnsupportedJSONSchemaFeature) as error:
        raise InvalidRequestError.of(f"{FIELD}.{form}", f"cannot be used: {_told(error)}") from error


def abort(reason: str) -> SparsityError:
    """Why the engine ended a request on its own: by the request's fault, or by its own."""
    if reason.startswith(_REFUSALS):
        return InvalidRequestError.of(FIELD, f"cannot be used: {reason[:512]}")
    return EngineError(f"engine aborted the request: {reason}")


def _told(error: Exception) -> str:
    return _PLACE.sub("", str(error)).strip()[:512]
