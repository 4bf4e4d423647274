"""An engine that answers with the prompt's last message, to look at routing, policies and clients without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from itertools import cycle, islice
from types import MappingProxyType
from typing import Any, Final

from sparsity.v1 import inference_pb2
from sparsity_serving.engines import ECHO
from tokenizers import Tokenizer

from sparsity_worker.echo.model import END, ROLES, role_token
from sparsity_worker.engine.sglang_engine import EngineRequest, Step

_PREFIX = "echo: "
# A stream comes in pieces, so that it is one: a pace, not a measurement.
_STEP_TOKENS, _STEP_SECONDS = 4, 0.02


class EchoEngine:
    """Stands in an :class:`~sparsity_worker.engine.sglang_engine.Engine`'s place, with the same requests and steps.

    Args:
        tokenizer: of the model folder that router and workers share.
    """

    name: Final = ECHO
    unreported: Final = "an echo: no model ran, so nothing was attended and nothing is measured"
    version: Final = ""
    backend: Final = "none"
    device: Final = ""
    dtype: Final = ""
    page_size: Final = 0
    kv_tokens: Final = 0
    setup: Final[Mapping[str, Any]] = MappingProxyType({})
    seeds: Final = True
    expressions: Final = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._prefix: list[int] = tokenizer.encode(_PREFIX, add_special_tokens=False).ids
        self._roles = {tokenizer.token_to_id(role_token(role)) for role in ROLES} - {None}
        self._end = tokenizer.token_to_id(END)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Step]:
        """The last message, as far as the request allows; over and over where it ignores the end."""
        answer, limit = [*self._prefix, *self.last_message(request.prompt)], int(request.sampling["max_new_tokens"])
        finish = "stop" if len(answer) <= limit and not request.sampling.get("ignore_eos") else "length"
        tokens = list(islice(cycle(answer) if request.sampling.get("ignore_eos") else answer, limit))
        for start in range(0, len(tokens), _STEP_TOKENS):
            await asyncio.sleep(_STEP_SECONDS)
            last = start + _STEP_TOKENS >= len(tokens)
            yield Step(tokens[start : start + _STEP_TOKENS], finish if last else None, 0, b"")

    def last_message(self, prompt: list[int]) -> list[int]:
        """The tokens of a chat's last message, by the echo's own template; any other prompt is one message."""
        message: list[int] = []
        for place, token in enumerate(prompt):
            if token in self._roles:
                # A marker at the very end asks for the answer: what came before it is the last message.
                message = message if place == len(prompt) - 1 else []
            elif token != self._end:
                message.append(token)
        return message

    def report(
        self, tier: inference_pb2.Tier.ValueType, profile: str, account: bytes
    ) -> inference_pb2.SparsityReport | None:
        """No report, whatever the tier: nothing was attended."""
        return None

    async def used_tokens(self) -> int:
        """KV slots in use: it has none."""
        return 0

    async def release(self) -> None:
        """Nothing else computes for it."""

    def shutdown(self) -> None:
        """Ends nothing: there is no other process."""
