"""Callers by JSON Web Token (RFC 7519), signed by an identity provider whose keys are a JWK Set (RFC 7517)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import jwt
from cachetools import TLRUCache
from jwt import PyJWKSet
from sparsity_rpc.errors import ConfigurationError, UnauthenticatedError

from sparsity_serving.access.principals import Principal, Role

log = logging.getLogger("sparsity.access.jwt")
# A key that both sides know would let every router issue tokens.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
REFRESH_SECONDS = 60.0
_FETCH_SECONDS = 5.0
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """Whose tokens count.

    Attributes:
        issuer: the token's `iss`.
        audience: must be in the token's `aud`.
        keys: file or https URL of the issuer's JWK Set.
        tenant_claim: names the caller's tenant.
        roles_claim: lists the caller's roles; without it a caller may call InferenceService only.
    """

    issuer: str
    audience: str
    keys: str
    tenant_claim: str = "tenant"
    roles_claim: str = "roles"

    def __post_init__(self) -> None:
        if "://" in self.keys and not self.keys.startswith("https://"):
            raise ConfigurationError(f"jwt.keys: {self.keys}: keys come from a file or by https")


class JwtVerifier:
    """Checks tokens; one that was good is remembered until it expires or the keys change.

    Raises:
        ConfigurationError: when the keys cannot be read.
    """

    def __init__(self, config: JwtConfig) -> None:
        self.config = config
        self._data = b""
        # By digest: whose it is, and until when, seconds since the epoch.
        self._good: TLRUCache[bytes, tuple[Principal, float]] = TLRUCache(
            _REMEMBERED, lambda digest, good, now: good[1], timer=lambda: time.time()
        )
        try:
            self._load(self._fetch())
        except Exception as error:  # whatever stands there, or the issuer answers
            raise ConfigurationError(f"jwt.keys: {config.keys}: {error}") from error

    def _fetch(self) -> bytes:
        if not self.config.keys.startswith("https://"):
            return Path(self.config.keys).read_bytes()
        with urllib.request.urlopen(self.config.keys, timeout=_FETCH_SECONDS) as answer:
            data: bytes = answer.read()
            return data

    def _load(self, data: bytes) -> None:
        if data != self._data:
            self._keys = {key.key_id: key for key in PyJWKSet.from_json(data.decode()).keys}
            self._data = data
            self._good.clear()

    async def refresh(self) -> None:
        """Takes up the issuer's keys as they are now; the last good ones hold."""
        try:
            self._load(await asyncio.to_thread(self._fetch))
        except Exception as error:  # whatever the issuer answers
            problem = f"{type(error).__name__}: {error}"
            log.warning("jwt.keys: %s: %s; the keys that were read before hold", self.config.keys, problem)

    def verify(self, token: str) -> Principal:
        """Who the token is of.

        Raises:
            UnauthenticatedError: saying what is wrong with it.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._good.get(digest)
        if known is not None:
            return known[0]
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(header.get("kid")) or self._only()
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self.config.audience,
                issuer=self.config.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(f"the token is not good: {error}") from error
        principal = self._principal(claims)
        self._good[digest] = (principal, float(claims["exp"]))
        return principal

    def _only(self) -> jwt.PyJWK:
        if len(self._keys) != 1:
            raise jwt.InvalidTokenError("its `kid` names no key of the issuer")
        return next(iter(self._keys.values()))

    def _principal(self, claims: dict[str, object]) -> Principal:
        listed = claims.get(self.config.roles_claim)
        words = {role.value for role in Role}
        roles = frozenset(Role(word) for word in listed if word in words) if isinstance(listed, list) else None
        tenant = claims.get(self.config.tenant_claim)
        return Principal(
            str(claims["sub"]),
            frozenset({Role.CALLER}) if roles is None else roles,
            tenant=tenant if isinstance(tenant, str) else "",
        )
