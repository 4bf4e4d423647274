"""Lets a call of InferenceService in: who calls, for which tenant, and whether it has requests and tokens left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc
from cachetools import TTLCache
from sparsity.v1 import inference_pb2
from sparsity_policies.model import Signals
from sparsity_rpc.channels import FELL_BACK, MAX_MESSAGE_BYTES
from sparsity_serving.access.access import Access
from sparsity_serving.access.leases import decision_digest
from sparsity_serving.access.principals import Role
from sparsity_serving.background.off_loop import OnLoop, off_loop
from sparsity_serving.fields.served import Served
from sparsity_serving.sampling import DEFAULT_MAX_NEW_TOKENS, new_tokens, wanted_answers

from sparsity_router.callers.fields import check_fields, check_size
from sparsity_router.callers.limits import TenantLimits

# A lease is good for a few seconds.
_FALL_BACK_SECONDS = 30.0
# Direct streams that end later, or of which there are more, stay charged the most they could come to.
_DIRECT_SECONDS, _MOST_DIRECT = 3600.0, 100_000
# Of a tenant's rate, that an answer may take where its caller does not say how long it may get.
_SHARE: Final = 8


class Charge(NamedTuple):
    """Tokens that a request was charged before anybody knew how many it takes."""

    tenant: str
    tokens: int


@dataclass(slots=True)
class _Direct:
    """What a request was charged that its client takes to a worker itself.

    Attributes:
        charge: of its tenant.
        until: when its client may still come back with it, by the monotonic clock.
        held: tokens that its tenant pays at the moment.
        is_back: whether it came back.
        is_settled: whether its worker has told what it came to.
    """

    charge: Charge
    until: float
    held: int
    is_back: bool = False
    is_settled: bool = False


class Callers:
    """Lets calls in.

    Args:
        access: who may call; it may leave InferenceService open.
        limits: rates by tenant; None limits nobody.
        max_prompt_bytes: that a prompt may have.
        new_tokens: of an answer whose caller does not say, nor its model; 0 is what there is room for, and None
            leaves it to the worker.
    """

    def __init__(
        self,
        access: Access | None = None,
        limits: TenantLimits | None = None,
        max_prompt_bytes: int = MAX_MESSAGE_BYTES,
        new_tokens: int | None = None,
    ) -> None:
        self._new_tokens = new_tokens
        self._access = access
        self._limits = limits
        self._max_prompt_bytes = max_prompt_bytes
        # By the digest of their decisions.
        self._direct: TTLCache[bytes, _Direct] = TTLCache(_MOST_DIRECT, _DIRECT_SECONDS)

    async def admit(
        self,
        request: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        tenant: str,
        served: Served,
        answers: int = 1,
    ) -> None:
        """Checks the fields beside the prompt, puts in the model's sampling, counts the request.

        Args:
            request: of a caller that was checked.
            context: of the call.
            tenant: whose calls are counted.
            served: the model.
            answers: that it is to get; a call that gets none counts as one.

        Raises:
            InvalidRequestError: naming the field.
            RateLimitError: when its tenant has used up its requests.
        """
        size = check_size(request, self._max_prompt_bytes)
        # Without documents to read there is little to check, however long the prompt is.
        read = size if request.tools or request.sampling.HasField("response_format") else 0
        await off_loop(OnLoop.TOKENIZER, read, check_fields, request, served)
        served.defaults.fill(request.sampling)
        self._fell_back(context, tenant)
        await self.count(tenant, request, answers)

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

    async def count(self, tenant: str, request: inference_pb2.GenerateRequest | None = None, answers: int = 1) -> None:
        """Counts a call by its answers, and holds its request's priority to what its tenant may claim.

        Raises:
            RateLimitError: when its tenant has used up its requests.
        """
        if self._limits is not None:
            if request is not None:
                request.priority = min(request.priority, self._limits.priority(tenant))
            await self._limits.request(tenant, answers)

    def default_new_tokens(self, request: inference_pb2.GenerateRequest, tenant: str, served: Served) -> int:
        """Tokens that each answer may have at most where its caller does not say; 0 leaves it to the worker.

        Until it has ended such an answer is reckoned as a short one: most are, and nobody asked for more.

        Args:
            request: of a caller that was let in.
            tenant: whose tokens are counted.
            served: the model.
        """
        wanted = served.defaults.max_new_tokens or self._new_tokens
        if wanted is None or request.sampling.HasField("max_new_tokens"):
            return 0
        # Only a worker knows what its prompt leaves of the context.
        wanted = min(wanted or served.context_length, served.context_length)
        most = self._limits.most_tokens(tenant) if self._limits is not None else None
        if most is None:
            return wanted
        return min(wanted, max(most // _SHARE // wanted_answers(request), DEFAULT_MAX_NEW_TOKENS))

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
        """Remembers what a request was charged that its client takes to a worker itself."""
        if self._limits is not None:
            until = time.monotonic() + _FALL_BACK_SECONDS
            self._direct[decision_digest(decision_id)] = _Direct(charge, until, charge.tokens)

    def ended(self, digest: bytes, used: int) -> None:
        """Settles, once, a request that its client took to a worker, which tells that it has ended.

        A client that says that it fell back was believed until now; what its worker did for it is charged all the same,
        to the tenant's next calls to this router, as far as :meth:`TenantLimits.give_back` lets it owe.

        Args:
            digest: of its decision.
            used: tokens that its worker worked on.
        """
        direct = self._direct.get(digest)
        if direct is None or direct.is_settled or self._limits is None:
            return
        held, direct.held, direct.is_settled = direct.held, used, True
        self._limits.give_back(direct.charge.tenant, tokens=held - used)

    def _fell_back(self, context: grpc.aio.ServicerContext[Any, Any], tenant: str) -> None:
        """Takes back, once, what a request was charged that its worker would not have, and that comes here instead."""
        decision_id = dict(context.invocation_metadata() or ()).get(FELL_BACK, "") if self._direct else ""
        direct = self._direct.get(decision_digest(str(decision_id))) if decision_id else None
        if direct is None or direct.charge.tenant != tenant or direct.is_back or time.monotonic() > direct.until:
            return
        if self._limits is not None:
            direct.is_back = True
            self._limits.give_back(tenant, requests=1)
            if not direct.is_settled:
                self._limits.give_back(tenant, tokens=direct.held)
                direct.held = 0
