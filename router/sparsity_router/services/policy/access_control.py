"""Access control and audit in front of every method of PolicyService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from inspect import isasyncgenfunction
from typing import Any, NamedTuple, cast

import grpc
from sparsity.v1 import policy_pb2
from sparsity_policies.storage.decisionlog import AuditEvent
from sparsity_rpc.errors import SparsityError
from sparsity_serving.access.principals import Principal, Role
from sparsity_serving.bounds import MAX_NAME, MAX_REASON, check_name

from sparsity_router.services.policy.state import PolicyState

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[PolicyState, Any, str], Awaitable[Any] | AsyncIterator[Any]]


class Method(NamedTuple):
    """One method of the service.

    Attributes:
        role: that its caller needs.
        handler: does it, given the state, the request and the caller's name.
        target: where the request names what it is about.
    """

    role: Role
    handler: Handler
    target: str = ""

    @property
    def streams(self) -> bool:
        """Whether it answers with a stream."""
        return isasyncgenfunction(self.handler)


def controlled(name: str, method: Method, state: PolicyState) -> Callable[..., Any]:
    """The servicer's function for a method: checks who calls, does it, and audits the call, however it ended."""

    async def unary(request: Any, context: Context) -> Any:
        with _checked(name, method, state, request, context) as actor:
            return await cast(Awaitable[Any], method.handler(state, request, actor))

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        with _checked(name, method, state, request, context) as actor:
            async with aclosing(cast(AsyncGenerator[Any], method.handler(state, request, actor))) as responses:
                async for response in responses:
                    yield response

    return stream if method.streams else unary


@contextlib.contextmanager
def _checked(name: str, method: Method, state: PolicyState, request: Any, context: Context) -> Iterator[str]:
    """Gives the name of a caller that may make the call."""
    # Read at once: a call that has ended must not be asked, grpc crashes.
    peer, at = context.peer(), state.follower.now()
    target, reason = _read(request, method.target), _reason(request)
    shown = (target[:MAX_NAME], reason[:MAX_REASON])
    principal: Principal | None = None
    status = grpc.StatusCode.OK.name
    try:
        principal = state.access.authenticate(context)
        check_name("reason", reason, MAX_REASON)
        check_name(method.target or "request", target, 2 * MAX_NAME)
        principal.require(method.role, target)
        yield principal.name
    except SparsityError as error:
        status = error.code.name
        raise
    except BaseException as error:
        # A caller who leaves ends a stream; anything else is a fault of ours.
        left = isinstance(error, GeneratorExit | asyncio.CancelledError)
        status = (grpc.StatusCode.CANCELLED if left else grpc.StatusCode.INTERNAL).name
        raise
    finally:
        name_of_caller = principal.name if principal else "unknown"
        state.recorder.audit(AuditEvent(name_of_caller, peer, name, *shown, status, at))


def _read(request: Any, path: str) -> str:
    value = request
    for part in path.split(".") if path else ():
        value = getattr(value, part)
    if isinstance(value, policy_pb2.Override):
        # Its id may not be made yet; whom it acts on says more.
        known = value.scope in policy_pb2.OverrideScope.values()
        name = policy_pb2.OverrideScope.Name(value.scope) if known else str(int(value.scope))
        scope = name.removeprefix("OVERRIDE_SCOPE_").lower()
        return f"{scope} {value.target}".rstrip()
    return str(value) if path else ""


def _reason(request: Any) -> str:
    holder = getattr(request, "override", request)
    return str(getattr(holder, "reason", ""))
