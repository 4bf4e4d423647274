"""Leases: a router's signed permission to use one worker for one request.

A token is a serialized `sparsity.v1.LeaseClaims` followed by its HMAC-SHA256 (RFC 2104) under a key that routers and
workers share. It binds worker, tier, decision and request, and ends soon; a worker takes each at most once.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
import time
from pathlib import Path

from cachetools import TLRUCache
from google.protobuf.message import DecodeError
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import ConfigurationError, LeaseError

# A kill switch does not recall a lease: it must not outlive the switch by much.
LEASE_SECONDS = 5.0
_KEY_BYTES = 16
_MAC_BYTES = 32
# Clocks of routers and workers may differ by this much.
_SKEW_SECONDS = 5.0


def read_key(path: Path | None) -> bytes | None:
    """The shared key, from a file or from SPARSITY_LEASE_KEY; None where neither is given.

    Raises:
        ConfigurationError: when the file cannot be read, or the key is too short.
    """
    try:
        key = path.read_bytes().strip() if path else os.environ.get("SPARSITY_LEASE_KEY", "").encode()
    except OSError as error:
        raise ConfigurationError(f"--lease-key-file: {path}: {error.strerror}") from error
    if not key and path is None:
        return None
    if len(key) < _KEY_BYTES:
        raise ConfigurationError(f"--lease-key-file: the key has {len(key)} bytes; {_KEY_BYTES} are the least")
    return key


def request_hash(request: worker_pb2.WorkerServiceGenerateRequest) -> bytes:
    """SHA-256 over all of a request but its lease."""
    if request.HasField("lease"):
        signed, request = request, worker_pb2.WorkerServiceGenerateRequest()
        request.CopyFrom(signed)
        request.ClearField("lease")
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def sign(
    key: bytes, request: worker_pb2.WorkerServiceGenerateRequest, worker_id: str, decision_id: str
) -> inference_pb2.WorkerLease:
    """A lease for ``request`` as it is now, at one worker."""
    claims = inference_pb2.LeaseClaims(
        worker_id=worker_id,
        tier=request.tier,
        decision_id=decision_id,
        request_hash=request_hash(request),
        nonce=secrets.token_bytes(12),
    )
    claims.expire_time.FromNanoseconds(int((time.time() + LEASE_SECONDS) * 1e9))
    body = claims.SerializeToString()
    token = body + hmac.digest(key, body, "sha256")
    return inference_pb2.WorkerLease(token=token, expire_time=claims.expire_time)


class LeaseChecker:
    """What a worker asks of a lease; it remembers each until it has expired, so that none is taken twice."""

    def __init__(self, key: bytes, worker_id: str, tier: inference_pb2.Tier.ValueType) -> None:
        self._key = key
        self._worker_id = worker_id
        self._tier = tier
        # None is forgotten before its lease has expired, however many there are.
        self._taken: TLRUCache[bytes, float] = TLRUCache(
            math.inf, lambda nonce, expires, now: expires + _SKEW_SECONDS, timer=lambda: time.time()
        )

    def take(self, request: worker_pb2.WorkerServiceGenerateRequest) -> inference_pb2.LeaseClaims:
        """Checks the lease of ``request`` and uses it up.

        Raises:
            LeaseError: saying what is wrong with it.
        """
        claims = self._open(request.lease.token)
        now = time.time()
        expires = claims.expire_time.ToNanoseconds() / 1e9
        if expires + _SKEW_SECONDS <= now:
            raise LeaseError(f"the lease expired {now - expires:.0f} s ago; ask the router for another")
        if claims.worker_id != self._worker_id:
            raise LeaseError(f"the lease is for worker {claims.worker_id}, not {self._worker_id}")
        if claims.tier != self._tier:
            wanted = inference_pb2.Tier.Name(claims.tier)
            raise LeaseError(f"the lease is for {wanted}; this worker serves another tier")
        if not hmac.compare_digest(claims.request_hash, request_hash(request)):
            raise LeaseError("the request is not the one that the lease was signed for")
        if claims.nonce in self._taken:
            raise LeaseError("the lease was used before; ask the router for another")
        self._taken[claims.nonce] = expires
        return claims

    def _open(self, token: bytes) -> inference_pb2.LeaseClaims:
        if not token:
            raise LeaseError("this worker demands a router's lease; call the router's Route or Generate")
        body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, body, "sha256")):
            raise LeaseError("the lease was not signed by a router of this fleet, or was changed")
        try:
            return inference_pb2.LeaseClaims.FromString(body)
        except DecodeError as error:
            raise LeaseError("the lease cannot be read") from error
