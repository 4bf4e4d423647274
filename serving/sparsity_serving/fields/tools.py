"""Tools that a model may call, and whether it must: bounded, and refused by name."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Final

from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import InvalidRequestError

from sparsity_serving.fields.documents import check_counts, check_together, read_object, texts

MAX_TOOLS: Final = 128
MAX_CALLS: Final = 128
"""Calls of one turn."""
NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def check_tools(
    tools: Sequence[inference_pb2.Tool], choice: inference_pb2.ToolChoice | None, *, formatted: bool, prefix: str = ""
) -> None:
    """Checks tools, and the choice among them.

    Args:
        tools: that the model may call.
        choice: whether it may or must; None where nobody says.
        formatted: whether the answer is held to a format.
        prefix: of the paths.

    Raises:
        InvalidRequestError: naming the field.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError.of(f"{prefix}tools", f"are {len(tools)}; there may be {MAX_TOOLS}")
    check_together(f"{prefix}tools", (tool.parameters for tool in tools))
    names: set[str] = set()
    must, called = (demanded(choice), choice.name) if choice is not None else (False, "")
    # Engines make the grammars of those that calls are held to into one, and read each other one by itself.
    grammars, pairs = must or any(tool.strict for tool in tools), 0
    for number, tool in enumerate(tools):
        path = f"{prefix}tools[{number}]"
        check_tool_name(f"{path}.name", tool.name)
        if tool.name in names:
            raise InvalidRequestError.of(f"{path}.name", f"{tool.name} is the name of an earlier one, too")
        names.add(tool.name)
        if tool.parameters:
            document = read_object(f"{path}.parameters", tool.parameters)
            if tool.strict or (must and called in ("", tool.name)):
                pairs = check_counts(f"{path}.parameters", document, pairs)
            elif grammars:
                check_counts(f"{path}.parameters", document)
            # Written as it is, it is no JSON.
            if "\\u0000" in tool.parameters and any("\0" in each for each in texts(document)):
                # The engine's grammars, which calls are held to, end with the process at one.
                raise InvalidRequestError.of(f"{path}.parameters", "have a character 0; leave it out")
    if choice is not None:
        _check_choice(f"{prefix}tool_choice", choice, names, formatted=formatted)
    if formatted and names and (choice is None or choice.mode != inference_pb2.TOOL_CHOICE_MODE_NONE):
        # Held to the format from its first token on, the model could never call one, and nobody would hear why.
        problem = "leaves no room for calls of `tools`: send tool_choice `none`, or one of the two"
        raise InvalidRequestError.of("sampling.response_format", problem)


def _check_choice(field: str, choice: inference_pb2.ToolChoice, names: set[str], *, formatted: bool) -> None:
    form = choice.WhichOneof("choice")
    if form is None:
        raise InvalidRequestError.of(field, "is empty; set mode or name")
    if form == "name" and choice.name not in names:
        raise InvalidRequestError.of(f"{field}.name", f"{reprlib.repr(choice.name)} is none of `tools`")
    if form == "mode" and choice.mode not in inference_pb2.ToolChoiceMode.values()[1:]:
        raise InvalidRequestError.of(f"{field}.mode", f"{choice.mode} is no mode")
    if not names and choice.mode != inference_pb2.TOOL_CHOICE_MODE_NONE:
        raise InvalidRequestError.of(field, "is set, and there are no `tools`")
    if formatted and demanded(choice):
        raise InvalidRequestError.of(field, "demands a call, and sampling.response_format another text: leave one out")


def check_tool_name(field: str, name: str) -> None:
    """Refuses a name that no tool may have.

    Raises:
        InvalidRequestError: naming ``field``.
    """
    if not NAME.fullmatch(name):
        problem = "is empty" if not name else f"{reprlib.repr(name)} is no name"
        raise InvalidRequestError.of(field, f"{problem}; a tool's has 1 to 64 letters, digits, `_` and `-`")


def demanded(choice: inference_pb2.ToolChoice) -> bool:
    """Whether the model has to call something."""
    return bool(choice.name) or choice.mode == inference_pb2.TOOL_CHOICE_MODE_REQUIRED


def shown(tools: Sequence[inference_pb2.Tool], choice: inference_pb2.ToolChoice) -> Sequence[inference_pb2.Tool]:
    """The tools that the model is shown: none where it may not call any."""
    return () if choice.mode == inference_pb2.TOOL_CHOICE_MODE_NONE else tools
