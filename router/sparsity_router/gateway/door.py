"""Listens for HTTP, and ends with the router: uvicorn, inside the router's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

import h11
import uvicorn
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.methods import GENERATE
from sparsity_rpc.tls import ServerTls
from sparsity_serving.addresses import joined, read_address
from sparsity_serving.server import count_error
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparsity_router.gateway.answers import encoded
from sparsity_router.gateway.exchange import JSON, Receive, Scope, Send
from sparsity_router.gateway.refusals import HttpError

_OPTION = "--http-listen"
_KEEP_ALIVE_SECONDS = 75
_HEAD_SECONDS = 30.0
# Clients that came together are not sent away together, as gRPC has it.
_SPREAD = 0.1
_CLOSE = (b"connection", b"close")
# Of a header that is none its name is told: what it says may be a key.
_VALUE = re.compile(r"(header line: \('[^:']*):.*", re.DOTALL)


class _Connection(H11Protocol):
    """A connection, closed when the head of a request does not come whole in time: each holds a file of the process."""

    _waiting: asyncio.TimerHandle | None = None
    most_seconds = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first head."""
        super().connection_made(transport)
        if self.most_seconds:
            until = self.loop.time() + self.most_seconds * random.uniform(1 - _SPREAD, 1 + _SPREAD)
            self.app = _renewed(self.app, lambda: self.loop.time() > until)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits for the rest of a head that has begun; between two requests the server's own timer runs."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP as every other mistake is answered, and closes the connection."""
        # The server tells no more than that there was something; what it was stands in the parser's error.
        problem = _VALUE.sub(r"\1')", str(sys.exception() or msg).replace("bytearray(b", "("))
        error = HttpError(400, "invalid_http", f"this is no HTTP: {problem}")
        count_error(GENERATE, error.counted)
        # An answer that has begun, as to a body that nobody wanted, cannot begin anew.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encoded({"error": error.refusal.error})
            headers = [JSON, (b"content-length", str(len(body)).encode()), _CLOSE]
            parts = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            # After a HEAD the parser takes no body.
            with contextlib.suppress(h11.LocalProtocolError):
                for part in parts:
                    self.transport.write(self.conn.send(part) or b"")
            if self.cycle is not None:
                # What the application says of this request by now is for nobody.
                self.cycle.disconnected = True
        self.transport.close()

    def _wait(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_more()
        elif self._waiting is None:
            # Not anew with each byte of it.
            self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def _renewed(app: Any, is_old: Callable[[], bool]) -> Any:
    """The application on a connection: answers that begin once it is old are the last on it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and is_old() and _CLOSE not in message["headers"]:
                message["headers"] = [*message["headers"], _CLOSE]
            await send(message)

        await app(scope, receive, sent)

    return answer


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the router."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Door:
    """An ASGI application on an address.

    Args:
        app: the application.
        address: host:port; port 0 takes a free one.
        tls: what the door proves itself with; None is plain text.
        shared: whether other processes listen on the address too.
        drain_seconds: that requests in flight get at the end.
        connection_seconds: after which clients connect anew, to find routers that came since; 0 keeps connections.

    Raises:
        ConfigurationError: when the address cannot be listened on, or a TLS file cannot be read.
    """

    def __init__(
        self,
        app: Any,
        address: str,
        tls: ServerTls | None,
        *,
        shared: bool,
        drain_seconds: float,
        connection_seconds: float = 0.0,
    ) -> None:
        secure = tls.context() if tls else None

        def context(*_: object) -> SSLContext:
            assert secure is not None, "asked for with TLS alone"
            return secure

        config = uvicorn.Config(
            app,
            http=type("_Renewed", (_Connection,), {"most_seconds": connection_seconds}),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(int(drain_seconds), 1),
            ssl_context_factory=context if secure else None,
        )
        self._socket = _listening(address, shared)
        self._server = _Server(config)
        self._ended = asyncio.Event()
        self.address = joined(read_address(address, _OPTION).host, self._socket.getsockname()[1])

    async def serve(self) -> None:
        """Serves until it is stopped."""
        try:
            await self._server.serve([self._socket])
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Takes nothing any more, and waits for what is in flight as long as it may take."""
        self._server.should_exit = True
        await self._ended.wait()

    def close(self) -> None:
        """Listens no more."""
        self._socket.close()


def _listening(address: str, shared: bool) -> socket.socket:
    place = read_address(address, _OPTION)
    try:
        return socket.create_server(
            tuple(place), family=place.family, reuse_port=shared, dualstack_ipv6=place.host == "::", backlog=2048
        )
    except OSError as error:
        problem = f"{_OPTION}: cannot listen on {address} ({error.strerror}); choose another port"
        raise ConfigurationError(problem) from error
