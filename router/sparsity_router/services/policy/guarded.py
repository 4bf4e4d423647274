"""Access control and audit in front of every method of PolicyService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import grpc
from sparsity.v1 import policy_pb2
from sparsity_policies.storage.decisionlog import AuditEvent
from sparsity_rpc.errors import SparsityError
from sparsity_serving.bounds import MAX_NAME, MAX_REASON, check_name

from sparsity_router.callers.access import Access
from sparsity_router.callers.principals import Principal, Role
from sparsity_router.observing.recorder import Recorder

Context = grpc.aio.ServicerContext[Any, Any]
_caller: ContextVar[str] = ContextVar("caller")


class _Need(NamedTuple):
    """The role that a method needs, and where its request names what it is about."""

    role: Role
    target: str = ""
    streams: bool = False


NEEDS: Final = {
    "GetPolicy": _Need(Role.VIEWER, "domain"),
    "ListPolicies": _Need(Role.VIEWER),
    "PutPolicy": _Need(Role.EDITOR, "policy.domain"),
    "DeletePolicy": _Need(Role.EDITOR, "domain"),
    "ListPolicyRevisions": _Need(Role.VIEWER, "domain"),
    "RollbackPolicy": _Need(Role.EDITOR, "domain"),
    "WatchPolicies": _Need(Role.VIEWER, streams=True),
    "SimulatePolicy": _Need(Role.VIEWER, "policy.domain"),
    "ListOverrides": _Need(Role.VIEWER),
    "PutOverride": _Need(Role.BREAKER, "override"),
    "DeleteOverride": _Need(Role.BREAKER, "id"),
    "UpdateRollout": _Need(Role.EDITOR, "domain"),
    "GetSavings": _Need(Role.VIEWER),
    "ListAuditEvents": _Need(Role.VIEWER),
}


def caller() -> str:
    """The name of whoever made the present call."""
    return _caller.get()


class Guarded:
    """A servicer whose methods are those of ``inner`` that :data:`NEEDS` names; ``now`` dates what it audits."""

    def __init__(self, inner: object, access: Access, recorder: Recorder, now: Callable[[], float]) -> None:
        self._inner = inner
        self._access = access
        self._recorder = recorder
        self._now = now

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in NEEDS:
            raise AttributeError(name)
        need, method = NEEDS[name], getattr(self._inner, name)

        async def unary(request: Any, context: Context) -> Any:
            with self._checked(name, need, request, context):
                return await method(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._checked(name, need, request, context):
                async with aclosing(method(request, context)) as responses:
                    async for response in responses:
                        yield response

        return stream if need.streams else unary

    @contextlib.contextmanager
    def _checked(self, name: str, need: _Need, request: Any, context: Context) -> Iterator[None]:
        # Read at once: a call that has ended must not be asked, grpc crashes.
        peer, at = context.peer(), self._now()
        target, reason = _read(request, need.target), _reason(request)
        shown = (target[:MAX_NAME], reason[:MAX_REASON])
        principal: Principal | None = None
        status = grpc.StatusCode.OK.name
        try:
            principal = self._access.authenticate(context)
            check_name("reason", reason, MAX_REASON)
            check_name(need.target or "request", target, 2 * MAX_NAME)
            principal.require(need.role, target)
            token = _caller.set(principal.name)
            try:
                yield
            finally:
                with contextlib.suppress(ValueError):  # a stream may be closed from another task's context
                    _caller.reset(token)
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
            self._recorder.audit(AuditEvent(name_of_caller, peer, name, *shown, status, at))


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
