"""Calls of OpenAI's endpoints: whole answers, or streams, of which every piece is counted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sparsity_rpc.errors import ConfigurationError, EngineError

# How the pieces of an answer begin: a chat's and a text's, with a space in JSON or without one.
_PIECES = tuple(f'"{field}":{space}"the'.encode() for field in ("content", "text") for space in ("", " "))

_END = re.compile(rb'"finish_reason": ?"length"')


@dataclass(frozen=True, slots=True)
class HttpCaller:
    """Asks servers one after the other, over connections that are kept.

    Attributes:
        session: of aiohttp.
        path: of the endpoint.
        model: that is asked for.
        headers: of every request.
    """

    session: Any
    path: str
    model: str
    headers: Mapping[str, str]

    async def pieces(self, address: str, prompt: Mapping[str, Any], messages: int) -> int:
        """The pieces of an answer of ``messages`` tokens at most, which is streamed where they are several.

        Raises:
            EngineError: when the server refuses, or the answer has no end.
        """
        body = {"model": self.model, "max_tokens": messages, "stream": messages > 1, **prompt}
        async with self.session.post(f"http://{address}{self.path}", json=body, headers=self.headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise EngineError(f"{address} answered {answer.status}: {content.decode()[:300]}")
        if not _END.search(content):
            raise EngineError(f"{address} gave an answer without an end: no figure is given")
        # A last event without words is some servers' own.
        return sum(content.count(piece) for piece in _PIECES)


@asynccontextmanager
async def http_caller(path: str, model: str, headers: Mapping[str, str]) -> AsyncIterator[HttpCaller]:
    """A caller, until the end of the block.

    Raises:
        ConfigurationError: without aiohttp.
    """
    try:
        import aiohttp
    except ModuleNotFoundError as error:
        raise ConfigurationError("HTTP is measured by aiohttp: install it") from error
    async with aiohttp.ClientSession() as session:
        yield HttpCaller(session, path, model, headers)
