"""Leases: a router's signed permission to use one worker for one request.

A token is a serialized `sparsity.v1.LeaseClaims` followed by its HMAC-SHA256 (RFC 2104) under a key that routers and
workers share (:mod:`sparsity_serving.access.lease_keys`). It binds worker, tier, decision and request, and ends soon;
a worker takes each at most once.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Collection

from cachetools import TLRUCache
from google.protobuf.message import DecodeError
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import LeaseError

from sparsity_serving.access.lease_keys import LeaseKeys

# A kill switch does not recall a lease: it must not outlive the switch by much.
LEASE_SECONDS = 5.0
_MAC_BYTES = 32
_STRANGE = "lease: was not signed by a router of this fleet, or was changed"
# Clocks of routers and workers may differ by this much.
_SKEW_SECONDS = 5.0


def request_hash(request: worker_pb2.WorkerServiceGenerateRequest) -> bytes:
    """SHA-256 over all of a request but its lease."""
    if request.HasField("lease"):
        signed, request = request, worker_pb2.WorkerServiceGenerateRequest()
        request.CopyFrom(signed)
        request.ClearField("lease")
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def decision_digest(decision_id: str) -> bytes:
    """What a lease's decision is called where others than its caller may listen: SHA-256 of its id."""
    return hashlib.sha256(decision_id.encode()).digest()


def sign(
    keys: LeaseKeys, request: worker_pb2.WorkerServiceGenerateRequest, worker_id: str, decision_id: str
) -> inference_pb2.WorkerLease:
    """A lease for ``request`` as it is now, at one worker."""
    key = keys.signing
    claims = inference_pb2.LeaseClaims(
        key_id=key.id,
        worker_id=worker_id,
        tier=request.tier,
        decision_id=decision_id,
        request_hash=request_hash(request),
        nonce=secrets.token_bytes(12),
    )
    claims.expire_time.FromNanoseconds(int((time.time() + LEASE_SECONDS) * 1e9))
    body = claims.SerializeToString()
    token = body + hmac.digest(key.secret, body, "sha256")
    return inference_pb2.WorkerLease(token=token, expire_time=claims.expire_time)


def _named(tier: inference_pb2.Tier.ValueType) -> str:
    return inference_pb2.Tier.Name(tier) if tier in inference_pb2.Tier.values() else f"tier {tier}"


class LeaseChecker:
    """What a worker asks of a lease; it remembers each until it has expired, so that none is taken twice.

    Args:
        keys: of this fleet's routers.
        worker_id: the worker's.
        tiers: that it serves.
    """

    def __init__(self, keys: LeaseKeys, worker_id: str, tiers: Collection[inference_pb2.Tier.ValueType]) -> None:
        self._keys = keys
        self._worker_id = worker_id
        self._tiers = frozenset(tiers)
        # None is forgotten before its lease has expired, however many there are.
        self._taken: TLRUCache[bytes, float] = TLRUCache(
            math.inf, lambda nonce, expires, now: expires + _SKEW_SECONDS, timer=lambda: time.time()
        )

    def redeem(self, request: worker_pb2.WorkerServiceGenerateRequest) -> inference_pb2.LeaseClaims:
        """Checks the lease of ``request`` and uses it up.

        Raises:
            LeaseError: naming the field, and saying what is wrong with it.
        """
        claims = self._open(request.lease.token)
        now = time.time()
        expires = claims.expire_time.ToNanoseconds() / 1e9
        if expires + _SKEW_SECONDS <= now:
            raise LeaseError(f"lease: expired {now - expires:.0f} s ago; ask the router for another")
        if claims.worker_id != self._worker_id:
            raise LeaseError(f"lease: is for worker {claims.worker_id}, not {self._worker_id}")
        if claims.tier not in self._tiers:
            served = ", ".join(map(_named, sorted(self._tiers)))
            raise LeaseError(f"lease: is for {_named(claims.tier)}, which this worker does not serve: it has {served}")
        if claims.tier != request.tier:
            raise LeaseError(f"lease: is for {_named(claims.tier)}, the request for {_named(request.tier)}")
        if not hmac.compare_digest(claims.request_hash, request_hash(request)):
            raise LeaseError("lease: was signed for another request than this one")
        if claims.nonce in self._taken:
            raise LeaseError("lease: was used before; ask the router for another")
        self._taken[claims.nonce] = expires
        return claims

    def _open(self, token: bytes) -> inference_pb2.LeaseClaims:
        if not token:
            raise LeaseError("lease: is none; this worker demands a router's: call its Route or Generate")
        body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
        try:
            claims = inference_pb2.LeaseClaims.FromString(body)
        except DecodeError as error:
            raise LeaseError(_STRANGE) from error
        held = self._keys.checking(claims.key_id)
        if not any(hmac.compare_digest(mac, hmac.digest(secret, body, "sha256")) for secret in held):
            raise LeaseError(_STRANGE)
        return claims
