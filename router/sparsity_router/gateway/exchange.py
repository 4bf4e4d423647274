"""One request of HTTP and its answer, between the ASGI server and the endpoints, and what the pipeline sees of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from sparsity_rpc.channels import DECISION_ID, REASON, TIER
from sparsity_rpc.errors import CancelledError, DeadlineError
from sparsity_serving.bounds import MAX_NAME

from sparsity_router.gateway.answers import encoded, event
from sparsity_router.gateway.declared import REQUEST_ID
from sparsity_router.gateway.refusals import HttpError, Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]
_TOLD: Final = {DECISION_ID: b"x-sparsity-decision-id", TIER: b"x-sparsity-tier", REASON: b"x-sparsity-reason"}
JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx, and what is built on it, would keep tokens back.
    (b"x-accel-buffering", b"no"),
)
_NAMED: Final = REQUEST_ID.encode()
_LINGER_SECONDS: Final = 5.0


class HttpCall:
    """What the pipeline asks of a call's context: who calls with what, until when, and where trailers go.

    Args:
        metadata: of the call; names in lower case.
        peer: who calls, as gRPC writes it.
        seconds: until the caller gives up; None without a deadline.

    Attributes:
        is_other: that it is no call of gRPC, which spans tell.
    """

    is_other: Final = True

    def __init__(self, metadata: tuple[tuple[str, str], ...], peer: str, seconds: float | None) -> None:
        self._metadata = metadata
        self._peer = peer
        self._until = None if seconds is None else time.monotonic() + seconds
        self._trailers: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's headers."""
        return self._metadata

    def peer(self) -> str:
        """Who calls."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None without a deadline."""
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def set_trailing_metadata(self, trailers: Any) -> None:
        """Keeps what is told of the decision."""
        self._trailers = tuple(trailers)

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What has been told of the decision so far."""
        return self._trailers

    @property
    def decision_id(self) -> str:
        """Of the decision, as soon as it is told."""
        return dict(self._trailers).get(DECISION_ID, "")


class Exchange:
    """One request and its answer.

    Args:
        scope: of ASGI.
        receive: gives the body, and tells that the caller went away.
        send: takes the answer.

    Attributes:
        call: as the pipeline sees it; None until its headers were read.
        is_read: whether the body has come, all of it.
        is_left: whether the caller is seen to have gone away.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._has_begun = False
        self.call: HttpCall | None = None
        self.is_read = False
        self.is_left = False

    @property
    def path(self) -> str:
        """Of the URL, which a proxy may send whole."""
        path = str(self._scope["path"])
        if path.startswith("/") or "://" not in path:
            return path
        return "/" + path.partition("://")[2].partition("/")[2]

    @property
    def headers(self) -> Headers:
        """Of the request, names in lower case."""
        return tuple(self._scope["headers"])

    @property
    def peer(self) -> str:
        """Who calls, as gRPC writes it."""
        client = self._scope.get("client") or ("", 0)
        return f"ipv6:[{client[0]}]:{client[1]}" if ":" in client[0] else f"ipv4:{client[0]}:{client[1]}"

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """What the call has told of its decision."""
        return self.call.trailing_metadata() if self.call else ()

    def must_be(self, *methods: str) -> None:
        """Refuses another method.

        Raises:
            HttpError: naming those that are taken.
        """
        if self._scope["method"] not in methods:
            problem = f"{self.path} takes {' and '.join(methods)} only"
            raise HttpError(405, "method_not_allowed", problem, (("allow", ", ".join(methods)),))

    async def receive(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more comes.

        Raises:
            CancelledError: when the caller went away.
        """
        message = await self._receive()
        if message["type"] != "http.request":
            self.is_left = True
            raise CancelledError("the caller left before its request was whole")
        self.is_read = not message.get("more_body", False)
        return message.get("body", b""), not self.is_read

    @asynccontextmanager
    async def while_wanted(self, call: HttpCall) -> AsyncIterator[None]:
        """Ends the block when its caller goes away or its deadline passes; the answer must end after the block.

        Raises:
            CancelledError: when the caller went away.
            DeadlineError: when its deadline passed.
        """
        own = asyncio.current_task()
        assert own is not None, "an answer is given by a task"

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.is_left = True
            own.cancel()

        watching, limit = asyncio.create_task(watch()), asyncio.timeout(call.time_remaining())
        try:
            async with limit:
                yield
        except asyncio.CancelledError as error:
            if self.is_left and own.uncancel() == 0:
                raise CancelledError("the caller left") from error
            raise
        except TimeoutError as error:
            if limit.expired():
                raise DeadlineError("the deadline passed that the caller set") from error
            raise
        finally:
            watching.cancel()

    async def answer(self, body: bytes, status: int = 200, headers: Headers = (), *, lingering: bool = False) -> None:
        """Answers in one piece of JSON; where the caller may still be writing, what it writes runs out for a moment."""
        length = (b"content-length", str(len(body)).encode())
        await self._begin(status, (JSON, length, *headers))
        if lingering:
            await self.write(body)
            await self._let_go()
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    async def begin_events(self) -> None:
        """Begins an answer of server-sent events."""
        await self._begin(200, _EVENTS)

    async def write(self, data: bytes) -> None:
        """Writes a piece of the answer; waits while the caller does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Ends an answer that was written in pieces."""
        await self._send({"type": "http.response.body", "body": data})

    async def refuse(self, refusal: Refusal) -> None:
        """Answers with an error: as the whole answer, or as the last event of a stream that has begun."""
        body = {"error": refusal.error}
        if self._has_begun:
            await self.end(event(body))
            return
        headers = tuple((name.encode(), value.encode()) for name, value in refusal.headers)
        await self.answer(encoded(body), refusal.status, headers, lingering=not self.is_read)

    async def _begin(self, status: int, headers: Headers) -> None:
        self._has_begun = True
        told = [(_TOLD[name], value.lower().encode()) for name, value in self.trailers if name in _TOLD]
        # By the caller's name, where it gave one; OpenAI's clients log it.
        own = dict(self.headers).get(_NAMED, b"") or (self.call.decision_id.encode() if self.call else b"")
        named = [(_NAMED, own[:MAX_NAME])] if own else []
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *told, *named]})

    async def _let_go(self) -> None:
        # A caller that is cut off in the middle of its body never reads why.
        with suppress(TimeoutError, CancelledError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.is_read:
                    await self.receive()
