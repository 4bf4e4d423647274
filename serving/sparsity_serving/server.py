"""Puts a servicer on a gRPC server so that every mistake of a caller gets a clear status.

Malformed messages answer INVALID_ARGUMENT (generated code would answer INTERNAL), raised SparsityErrors their own
status, and methods that the servicer lacks UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from sparsity_rpc import semconv
from sparsity_rpc.channels import MAX_MESSAGE_BYTES
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, SparsityError, UnimplementedError
from sparsity_rpc.status import answer
from sparsity_rpc.tls import ServerTls

from sparsity_serving.addresses import read_address, require_free
from sparsity_serving.fields.unparsed import SMALL, too_much
from sparsity_serving.health import Health
from sparsity_serving.metrics.metering import ERRORS, meter_of

Context = grpc.aio.ServicerContext[Any, Any]
_errors = meter_of("sparsity.rpc").create_counter(ERRORS, "{request}", "Refused or failed, by method and status.")
# Large messages are counted and parsed beside the event loop, one after the other: strangers can send them, too.
_PARSING = ThreadPoolExecutor(1, thread_name_prefix="parsing")

# Where grpc writes down what a handler raised.
_grpc_log = logging.getLogger("grpc._cython.cygrpc")


def _is_a_fault(record: logging.LogRecord) -> bool:
    """Whether a record is of more than a caller who left before the answer: those would fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


class _Malformed(NamedTuple):
    message: str
    problem: str


def count_error(method: str, code: grpc.StatusCode) -> None:
    """Counts a call that was refused or failed, by the whole name of its method, `package.Service/Method`."""
    _errors.add(1, {semconv.RPC_METHOD: method, semconv.RPC_RESPONSE_STATUS_CODE: code.name})


def add_service(
    server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> None:
    """Registers ``servicer``, whose coroutine or async-generator methods bear the names of the service's methods."""
    handlers = {
        method.name: _handler(method, getattr(servicer, method.name, None), max_message_bytes)
        for method in service.methods
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service.full_name, handlers)])


def _handler(
    method: MethodDescriptor, function: Callable[..., Any] | None, most: int
) -> grpc.RpcMethodHandler[Any, Any]:
    kind, name = GetMessageClass(method.input_type), f"{method.containing_service.full_name}/{method.name}"

    def parse(data: bytes) -> Any:
        if problem := too_much(data, method.input_type, most):
            return _Malformed("request", problem)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            return _Malformed(method.input_type.name, str(error) + _remedy(data))

    def checked(request: Any) -> Callable[..., Any]:
        if request is grpc.aio.EOF:
            raise InvalidRequestError.of(method.input_type.name, "did not come: the call ended without a message")
        if isinstance(request, _Malformed):
            raise InvalidRequestError.of(request.message, request.problem)
        if function is None:
            raise UnimplementedError(f"{method.full_name} is not implemented in this version")
        return function

    async def refuse(context: Context, error: SparsityError) -> NoReturn:
        count_error(name, error.code)
        try:
            await answer(context, error)
        except grpc.aio.InternalError as gone:
            # Who has left cannot be answered.
            raise asyncio.CancelledError from gone

    # Read here: a call that ends without a message would get no answer at all from grpc's handlers of one message.
    async def read(context: Context) -> Any:
        data = await context.read()
        if data is grpc.aio.EOF or len(data) <= SMALL:
            return data if data is grpc.aio.EOF else parse(data)
        return await asyncio.get_running_loop().run_in_executor(_PARSING, parse, data)

    async def unary(_: object, context: Context) -> Any:
        try:
            request = await read(context)
            return await checked(request)(request, context)
        except SparsityError as error:
            await refuse(context, error)
        except Exception:
            count_error(name, grpc.StatusCode.UNKNOWN)
            raise

    async def stream(_: object, context: Context) -> AsyncIterator[Any]:
        try:
            request = await read(context)
            async with aclosing(checked(request)(request, context)) as responses:
                async for response in responses:
                    yield response
        except SparsityError as error:
            await refuse(context, error)
        except Exception:
            count_error(name, grpc.StatusCode.UNKNOWN)
            raise

    def serialize(message: Any) -> bytes:
        return bytes(message.SerializeToString())

    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, None, serialize)
    return grpc.stream_unary_rpc_method_handler(unary, None, serialize)


def _remedy(data: bytes) -> str:
    """What is wrong with a message that cannot be read: its text, or all of it."""
    try:
        Empty.FromString(data)
    except DecodeError:
        return "; this is no protobuf message, or not all of one"
    return "; text must be valid UTF-8, and other prompts go into token_ids"


class Endpoint(NamedTuple):
    """A server that listens, its health, and its port."""

    server: grpc.aio.Server
    health: Health
    port: int


def listen(
    address: str,
    services: dict[ServiceDescriptor, object],
    max_message_bytes: int,
    tls: ServerTls | None = None,
    *,
    shared: bool = False,
    connection_seconds: float = 0.0,
) -> Endpoint:
    """A server with ``services``, standard health and reflection on ``address``; port 0 takes a free one.

    A request of more than ``max_message_bytes`` is refused before it is parsed, as is one of too many parts.
    A ``shared`` address may be listened on by other processes too, and the kernel spreads connections over them.
    Clients connect anew after ``connection_seconds``, so that they find servers that came since; calls in flight are
    finished on the old connection. 0 keeps connections.

    Raises:
        ConfigurationError: when the address cannot be listened on, or a TLS file cannot be read.
    """
    options = [
        # What is longer than that gets no answer of ours.
        ("grpc.max_receive_message_length", max(max_message_bytes, MAX_MESSAGE_BYTES)),
        ("grpc.so_reuseport", int(shared)),
        # Routers and clients may find out by ping whether their peer is still there.
        ("grpc.http2.min_ping_interval_without_data_ms", 2000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if connection_seconds:
        options.append(("grpc.max_connection_age_ms", int(connection_seconds * 1000)))
    _grpc_log.addFilter(_is_a_fault)
    read_address(address, "--listen")
    server = grpc.aio.server(options=options)
    for descriptor, servicer in services.items():
        add_service(server, descriptor, servicer, max_message_bytes)
    names = [descriptor.full_name for descriptor in services]
    healthy = Health(names)
    healthy.add_to(server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    if not shared:
        require_free(address)
    try:
        secure = tls.credentials() if tls else None
        port = server.add_secure_port(address, secure) if secure else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(f"--listen: cannot listen on {address}: {error}") from error
    return Endpoint(server, healthy, port)
