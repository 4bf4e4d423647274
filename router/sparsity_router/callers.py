"""Who calls InferenceService, for which tenant, and whether the tenant has requests and tokens left."""

from __future__ import annotations

from typing import Any

import grpc
from sparsity.sampling import new_tokens
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Signals

from sparsity_router.access import Access
from sparsity_router.limits import TenantLimits
from sparsity_router.principals import Role


class Callers:
    """Lets calls in.

    Args:
        access: who may call; it may leave InferenceService open.
        limits: rates by tenant; None limits nobody.
    """

    def __init__(self, access: Access | None = None, limits: TenantLimits | None = None) -> None:
        self._access = access if access and access.guards_inference else None
        self._limits = limits

    def check(self, context: grpc.aio.ServicerContext[Any, Any], request: inference_pb2.GenerateRequest | None) -> None:
        """Checks the caller, and puts its tenant into the request.

        Raises:
            UnauthenticatedError: when it is not known.
            PermissionDeniedError: when it may not call, or not for this tenant.
        """
        if self._access is None:
            return
        principal = self._access.authenticate(context)
        principal.require(Role.CALLER)
        if request is not None and (tenant := principal.tenant_of(request.context.tenant)):
            request.context.tenant = tenant

    async def count(self, request: inference_pb2.GenerateRequest) -> None:
        """Counts the request, and holds its priority to what its tenant may claim.

        Raises:
            RateLimitError: when its tenant has used up its requests.
        """
        if self._limits is not None:
            tenant = request.context.tenant
            request.priority = min(request.priority, self._limits.priority(tenant))
            await self._limits.request(tenant)

    async def spend(self, request: inference_pb2.GenerateRequest, signals: Signals) -> None:
        """Counts a request's tokens.

        Raises:
            RateLimitError: when its tenant has used up its tokens.
        """
        if self._limits is not None:
            await self._limits.tokens(signals.tenant, signals.max_tokens + new_tokens(request.sampling))
