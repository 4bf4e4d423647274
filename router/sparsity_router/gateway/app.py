"""The endpoints, as an ASGI application."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

import grpc
from sparsity.v1 import inference_pb2
from sparsity_rpc.errors import (
    CancelledError,
    EngineError,
    InvalidRequestError,
    NotFoundError,
    SparsityError,
    UnavailableError,
)
from sparsity_rpc.methods import GENERATE
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.health import Health
from sparsity_serving.sampling import wanted_answers
from sparsity_serving.server import count_error

from sparsity_router.callers.admission import Callers
from sparsity_router.gateway import answers, fields
from sparsity_router.gateway.asking import Asked, Field, read
from sparsity_router.gateway.body import parsed, read_body
from sparsity_router.gateway.declared import Called, declare, read_headers
from sparsity_router.gateway.exchange import Exchange, HttpCall, Receive, Scope, Send
from sparsity_router.gateway.refusals import FIELD, HttpError, refusal
from sparsity_router.models.models import Models
from sparsity_router.services.inference import GenerateContext, InferenceService

log = logging.getLogger("sparsity.router.http")
_MODELS: Final = "/v1/models"
_HEALTH: Final = "/health"
# What JSON's escapes may make of a prompt, and room for what comes with it.
_ESCAPED, _BESIDE = 4, 2**20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is posted to a path.

    Attributes:
        fields: of the request.
        needed: that must be there.
        form: of answers.
    """

    fields: dict[str, Field]
    needed: tuple[str, ...]
    form: answers.Form


ENDPOINTS: Final = {
    "/v1/chat/completions": Endpoint(fields.CHAT, ("model", "messages"), answers.CHAT),
    "/v1/completions": Endpoint(fields.COMPLETION, ("model", "prompt"), answers.COMPLETION),
}


class Gateway:
    """Serves OpenAI's endpoints by the pipeline of gRPC's Generate.

    Args:
        inference: the pipeline.
        callers: lets calls in.
        models: that may be asked for.
        max_prompt_bytes: of the router.
        health: that load balancers ask for.

    Attributes:
        most: bytes of a request's body.
    """

    def __init__(
        self, inference: InferenceService, callers: Callers, models: Models, max_prompt_bytes: int, health: Health
    ) -> None:
        self._health = health
        self._inference = inference
        self._callers = callers
        self._models = models
        self._started = int(time.time())
        self.most = _ESCAPED * max_prompt_bytes + _BESIDE
        self._most_ids = max_prompt_bytes // 4

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except HttpError as error:
            count_error(GENERATE, error.counted)
            await exchange.refuse(error.refusal)
        except CancelledError as error:
            # Who has left cannot be answered; who has not did not cancel it.
            if not exchange.is_left:
                await self._refuse(exchange, UnavailableError(f"the request was cancelled, not by its caller: {error}"))
        except SparsityError as error:
            await self._refuse(exchange, error)
        except Exception:
            log.exception("a request failed")
            count_error(GENERATE, grpc.StatusCode.UNKNOWN)
            await exchange.refuse(refusal(EngineError("the router failed on this request; its log says how")))

    @staticmethod
    async def _refuse(exchange: Exchange, error: SparsityError) -> None:
        count_error(GENERATE, error.code)
        await exchange.refuse(refusal(error, exchange.trailers))

    async def _answer(self, exchange: Exchange) -> None:
        path = exchange.path
        if endpoint := ENDPOINTS.get(path):
            exchange.must_be("POST")
            await self._generate(exchange, endpoint)
        elif path == _MODELS or path.startswith(f"{_MODELS}/"):
            exchange.must_be("GET")
            await self._tell_models(exchange, path.removeprefix(_MODELS).removeprefix("/"))
        elif path == _HEALTH:
            # Without a key: load balancers have none, and it says no more than a refused connection would.
            exchange.must_be("GET", "HEAD")
            ready = self._health.ready
            await exchange.answer(answers.encoded({"status": "ready" if ready else "not ready"}), 200 if ready else 503)
        else:
            known = ", ".join((*ENDPOINTS, _MODELS, _HEALTH))
            raise HttpError(404, "unknown_url", f"nothing is served at {path[:256]}; there are {known}")

    async def _tell_models(self, exchange: Exchange, name: str) -> None:
        """The served models by all of their names, or one of them."""
        called = read_headers(exchange.headers)
        await self._callers.count(self._checked(HttpCall(called.metadata, exchange.peer, None)))
        if name:
            self._served(name)
        common = {"object": "model", "created": self._started, "owned_by": "sparsity-router"}
        found = [{"id": each, **common} for each in self._models.names if not name or each == name]
        await exchange.answer(answers.encoded(found[0] if name else {"object": "list", "data": found}))

    async def _generate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        called = read_headers(exchange.headers)
        call = HttpCall(called.metadata, exchange.peer, called.seconds)
        exchange.call = call
        # Before anything of a stranger's is read.
        self._checked(call)
        asked = await self._asked(exchange, endpoint, called)
        try:
            async with exchange.while_wanted(call):
                if asked.stream:
                    await self._stream(exchange, call, asked, endpoint.form)
                else:
                    whole = await self._whole(call, asked, endpoint.form)
        except InvalidRequestError as error:
            raise asked.in_its_words(error) from error
        if asked.stream:
            await exchange.end()
        else:
            await exchange.answer(whole)

    async def _asked(self, exchange: Exchange, endpoint: Endpoint, called: Called) -> Asked:
        """The request; a long body is read beside the event loop."""
        data = await read_body(exchange, self.most)
        return await off_loop(OnLoop.TOKENIZER, len(data), self._read, data, endpoint, called)

    def _read(self, data: bytes, endpoint: Endpoint, called: Called) -> Asked:
        """The request; what its body was parsed into takes ten times its bytes, and ends here."""
        asked = Asked(most_ids=self._most_ids)
        document = parsed(data, self._most_ids)
        read(endpoint.fields, document, asked)
        declare(asked, called)
        for name in endpoint.needed:
            if document.get(name) is None:
                raise InvalidRequestError.of(name, "is missing")
        asked.message.model = self._served(asked.model)
        return asked

    def _checked(self, call: HttpCall) -> str:
        return self._callers.check(cast(GenerateContext, call), None)

    def _served(self, name: str) -> str:
        """The name of the model that is asked for; OpenAI's endpoints have no default one."""
        if not name or (model := self._models.named(name)) is None:
            raise NotFoundError(f"the model {self._models.refusal(name)}").about({FIELD: "model"})
        return model.name

    async def _stream(self, exchange: Exchange, call: HttpCall, asked: Asked, form: answers.Form) -> None:
        answer: answers.Answer | None = None
        async with aclosing(self._messages(call, asked)) as messages:
            async for message in messages:
                events = b""
                if asked.one_call:
                    answers.keep_one_call(message)
                if answer is None:
                    # The decision, and so every header, is known with the first message.
                    answer = self._started_answer(call, asked, form)
                    events = answer.first()
                    await exchange.begin_events()
                events += answer.part(message)
                if message.HasField("completion"):
                    events += answer.last(message)
                if events:
                    await exchange.write(events)

    async def _whole(self, call: HttpCall, asked: Asked, form: answers.Form) -> bytes:
        async with aclosing(self._messages(call, asked)) as messages:
            found = [message async for message in messages]
        for message in found if asked.one_call else ():
            answers.keep_one_call(message)
        size, answer = sum(message.ByteSize() for message in found), self._started_answer(call, asked, form)
        # Log-probabilities are told in tens of bytes each, and there may be millions.
        return await off_loop(OnLoop.TOKENIZER, size, answer.whole, found)

    def _messages(self, call: HttpCall, asked: Asked) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        # The pipeline asks of a context what HttpCall has, and no more; it is a generator, whatever it is declared.
        messages = self._inference.Generate(asked.message, cast(GenerateContext, call))
        return cast(AsyncGenerator[inference_pb2.GenerateResponse], messages)

    def _started_answer(self, call: HttpCall, asked: Asked, form: answers.Form) -> answers.Answer:
        return answers.Answer(
            form,
            call.decision_id,
            asked.message.model,
            int(time.time()),
            wanted_answers(asked.message),
            usage=asked.usage,
        )
