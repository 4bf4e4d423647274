"""What a request wants of its answer beside text: formats, calls, thoughts apart, log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sparsity.v1 import worker_pb2
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.engines import ECHO
from sparsity_serving.fields.logprobs import check_logprobs, check_prompt_logprobs
from sparsity_serving.fields.tools import check_tools, demanded

from sparsity_worker.calls.parsers import Parsers
from sparsity_worker.calls.parsing import ChatParser
from sparsity_worker.echo.engine import EchoEngine
from sparsity_worker.engine.grammar import check_grammar, check_schema
from sparsity_worker.engine.logprobs import Scores
from sparsity_worker.engine.sglang_engine import Engine, EngineRequest

# Where a template opens a span of reasoning itself, it does so last.
_TAIL: Final = 8


async def check_wishes(
    request: worker_pb2.WorkerServiceGenerateRequest, inner: EngineRequest, engine: Engine | EchoEngine
) -> None:
    """Refuses what cannot be done, before the engine sees it.

    Args:
        request: as it came.
        inner: the same in the engine's terms, its sampling checked.
        engine: that would do it.

    Raises:
        InvalidRequestError: naming the field.
    """
    sampling, chat = request.sampling, request.chat
    formatted = sampling.HasField("response_format")
    check_logprobs(request.logprobs)
    check_prompt_logprobs(request.logprobs, len(inner.prompt))
    choice = chat.tool_choice if chat.HasField("tool_choice") else None
    if chat.tools:
        # Up to a megabyte of JSON.
        await asyncio.to_thread(check_tools, chat.tools, choice, formatted=formatted, prefix="chat.")
    else:
        check_tools((), choice, formatted=formatted, prefix="chat.")
    if sampling.HasField("seed") and inner.sampling["temperature"] > 0 and not engine.seeds:
        raise InvalidRequestError.of("sampling.seed", "has no effect on this engine's sampler; leave it out")
    if engine.name == ECHO:
        for field, asked in (
            ("sampling.response_format", formatted),
            ("logprobs", request.HasField("logprobs")),
            ("tool_choice", demanded(chat.tool_choice)),
        ):
            if asked:
                raise InvalidRequestError.of(field, "cannot be had of an echo, which runs no model")
    elif formatted:
        await asyncio.to_thread(check_grammar, sampling.response_format, expressions=engine.expressions)
    elif demanded(chat.tool_choice) or any(tool.strict for tool in chat.tools):
        for number, tool in enumerate(chat.tools):
            # Of a choice by name the engine gets that one alone.
            if tool.parameters and chat.tool_choice.name in ("", tool.name):
                field = f"chat.tools[{number}].parameters"
                await asyncio.to_thread(check_schema, field, tool.parameters, expressions=engine.expressions)


def parser_of(
    request: worker_pb2.WorkerServiceGenerateRequest,
    prompt: Sequence[int],
    markers: Sequence[int],
    parsers: Parsers | None,
) -> ChatParser:
    """What takes the answer apart.

    Args:
        request: as it came.
        prompt: its tokens.
        markers: token ids around a reasoning span; none where the model has none.
        parsers: of the model; None of an echo.

    Raises:
        InvalidRequestError: naming the field, where calls could not be told from text.
    """
    chat = request.chat if parsers is not None and request.HasField("chat") else None
    formatted = request.sampling.HasField("response_format")
    return ChatParser(parsers or Parsers(), chat, opened(prompt, markers), formatted=formatted)


def opened(prompt: Sequence[int], markers: Sequence[int]) -> bool | None:
    """Whether a prompt ends within a span of reasoning; None where its end says nothing of one."""
    last = next((token for token in reversed(prompt[-_TAIL:]) if token in markers), None)
    return None if last is None else last == markers[0]


def granted(
    inner: EngineRequest, request: worker_pb2.WorkerServiceGenerateRequest, parser: ChatParser
) -> EngineRequest:
    """The engine's request with what is wanted in it."""
    options = request.logprobs
    scores = Scores(options.top, options.prompt) if request.HasField("logprobs") else None
    held = (
        parser.calls.constraint if parser.calls is not None and not request.sampling.HasField("response_format") else {}
    )
    return replace(inner, sampling=inner.sampling | held, scores=scores)
