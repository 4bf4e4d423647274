"""The calls of the policy API that were made."""

from __future__ import annotations

import re
import reprlib

from sparsity.v1 import policy_pb2
from sparsity_policies.wire import timestamp
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving.bounds import page_size

from sparsity_router.services.policy.state import PolicyState

_PAGE = 100
_TOKEN = re.compile("[0-9]{1,19}-[0-9]{1,19}")


async def list_audit_events(
    state: PolicyState, request: policy_pb2.ListAuditEventsRequest, actor: str
) -> policy_pb2.ListAuditEventsResponse:
    """Events of all routers, newest first."""
    if state.decisions is None:
        raise ConfigurationError("this router keeps no audit events: it was started without --redis-url")
    if request.page_token and not _TOKEN.fullmatch(request.page_token):
        raise InvalidRequestError.of("page_token", f"is not one of this service: {reprlib.repr(request.page_token)}")
    size = page_size(request.page_size, _PAGE)
    events, token = await state.decisions.audit(request.page_token, size)
    response = policy_pb2.ListAuditEventsResponse(next_page_token=token)
    for event in events:
        response.events.add(
            time=timestamp(event.time),
            actor=event.actor,
            peer=event.peer,
            method=event.method,
            target=event.target,
            reason=event.reason,
            status=event.status,
        )
    return response
