"""Lets a call of InferenceService in: who calls, for which tenant, and whether it has requests and tokens left."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import grpc
from cachetools import TTLCache
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Signals
from sparsity_rpc.channels import FELL_BACK, MAX_MESSAGE_BYTES
from sparsity_serving.access.access import Access
from sparsity_serving.access.principals import Role
from sparsity_serving.fields.served import Served
from sparsity_serving.sampling import new_tokens, wanted_answers

from sparsity_router.callers.fields import check_fields, check_size
from sparsity_router.callers.limits import TenantLimits
from sparsity_router.prompts.classify import OnLoop, off_loop

# A lease is good for a few seconds.
_FALL_BACK_SECONDS = 30.0


class Charge(NamedTuple):
    """Tokens that a request was charged before anybody knew how many it takes."""

    tenant: str
    tokens: int


class Callers:
    """Lets calls in.

    Args:
        access: who may call; it may leave InferenceService open.
        limits: rates by tenant; None limits nobody.
        max_prompt_bytes: that a prompt may have.
    """

    def __init__(
        self,
        access: Access | None = None,
        limits: TenantLimits | None = None,
        max_prompt_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._access = access
        self._limits = limits
        self._max_prompt_bytes = max_prompt_bytes
        # What directed requests were charged, by decision, while their client may still fall back to the relay.
        self._routed: TTLCache[str, Charge] = TTLCache(math.inf, _FALL_BACK_SECONDS)

    async def admit(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any], served: Served
    ) -> None:
        """Checks caller and fields beside the prompt, puts in tenant and the model's sampling, counts the request.

        Args:
            request: as the caller sent it.
            context: of the call.
            served: the model.

        Raises:
            UnauthenticatedError: when the caller is not known.
            PermissionDeniedError: when it may not call, or not for this tenant.
            InvalidRequestError: naming the field.
            RateLimitError: when its tenant has used up its requests.
        """
        tenant = self.check(context, request)
        size = check_size(request, self._max_prompt_bytes)
        # Without documents to read there is little to check, however long the prompt is.
        read = size if request.tools or request.sampling.HasField("response_format") else 0
        await off_loop(OnLoop.TOKENIZER, read, check_fields, request, served)
        served.defaults.fill(request.sampling)
        self._fell_back(context, tenant)
        await self.count(tenant, request)

    def check(self, context: grpc.aio.ServicerContext[Any, Any], request: inference_pb2.GenerateRequest | None) -> str:
        """Checks the caller, and puts its tenant into the request; whose calls are counted.

        Raises:
            UnauthenticatedError: when it is not known.
            PermissionDeniedError: when it may not call, or not for this tenant.
        """
        named = request.context.tenant if request is not None else ""
        if self._access is None or not self._access.guards_inference:
            return named
        principal = self._access.authenticate(context)
        principal.require(Role.CALLER)
        tenant = principal.tenant_of(named)
        if request is not None and tenant:
            request.context.tenant = tenant
        return tenant

    async def count(self, tenant: str, request: inference_pb2.GenerateRequest | None = None) -> None:
        """Counts a call, and holds its request's priority to what its tenant may claim.

        Raises:
            RateLimitError: when its tenant has used up its requests.
        """
        if self._limits is not None:
            if request is not None:
                request.priority = min(request.priority, self._limits.priority(tenant))
            await self._limits.request(tenant)

    async def charge(self, request: inference_pb2.GenerateRequest, signals: Signals) -> Charge:
        """Counts a request's tokens, as many as it may come to.

        Raises:
            RateLimitError: when its tenant has used up its tokens.
        """
        charge = Charge(signals.tenant, signals.max_tokens + wanted_answers(request) * new_tokens(request.sampling))
        if self._limits is not None:
            await self._limits.tokens(*charge)
        return charge

    def settle(self, charge: Charge, used: int) -> None:
        """Takes back what was charged and not used, once that is known."""
        if self._limits is not None:
            self._limits.give_back(charge.tenant, tokens=charge.tokens - used)

    def routed(self, decision_id: str, charge: Charge) -> None:
        """Remembers for a moment what a request was charged that its client takes to a worker itself."""
        if self._limits is not None:
            self._routed[decision_id] = charge

    def _fell_back(self, context: grpc.aio.ServicerContext[Any, Any], tenant: str) -> None:
        """Takes back, once, what a request was charged that its worker would not have, and that comes here instead."""
        decision_id = dict(context.invocation_metadata() or ()).get(FELL_BACK, "") if self._routed else ""
        if decision_id and self._limits is not None:
            charge = self._routed.pop(str(decision_id), None)
            if charge is not None and charge.tenant == tenant:
                self._limits.give_back(tenant, requests=1, tokens=charge.tokens)
