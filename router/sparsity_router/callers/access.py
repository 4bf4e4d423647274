"""Who may call, and do what with policies: keys, tokens and roles from a YAML file.

    inference: required                      # or open, the default: anybody may call InferenceService
    principals:
      - name: ann
        key_sha256: 5e88...                  # of the key that `sparsity policy new-key` prints
        roles: [viewer, editor, breaker]
        domains: [rag, "support-*"]          # what an editor may edit; all when left out
      - {name: search, key_sha256: 9f86..., roles: [caller], tenant: acme}
    jwt: {issuer: "https://id.example", audience: sparsity, keys: /etc/sparsity/jwks.json}

A caller calls InferenceService; a viewer reads policies; an editor also writes them and moves rollouts; a breaker also
sets and ends overrides, the kill switch. A principal with a tenant sends that tenant's requests only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
from sparsity_rpc.errors import ConfigurationError, UnauthenticatedError

from sparsity_router.callers.jwt import JwtConfig, JwtVerifier
from sparsity_router.callers.options_file import read_options_file
from sparsity_router.callers.principals import Principal, Role

Context = grpc.aio.ServicerContext[Any, Any]
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Access:
    """The principals by the hash of their keys, and the verifier of tokens; without any, all may do everything."""

    def __init__(
        self,
        principals: Mapping[str, Principal] | None,
        tokens: JwtVerifier | None = None,
        *,
        guards_inference: bool = False,
    ) -> None:
        self._principals = principals
        self.tokens = tokens
        self.guards_inference = guards_inference

    @classmethod
    def load(cls, path: Path | None) -> Access:
        """Reads an access file; None opens everything.

        Raises:
            ConfigurationError: naming the file and the entry.
        """
        if path is None:
            return cls(None)
        document = read_options_file("--access", path)
        if not isinstance(document, dict) or not document.keys() <= {"principals", "jwt", "inference"}:
            raise ConfigurationError(f"--access: {path}: must have principals, jwt and inference, and no other field")
        entries = document.get("principals", [] if "jwt" in document else None)
        if not isinstance(entries, list) or (not entries and "jwt" not in document):
            raise ConfigurationError(f"--access: {path}: must have a list `principals`, or `jwt`")
        inference = document.get("inference", "open")
        if inference not in ("open", "required"):
            raise ConfigurationError(f"--access: {path}: inference: must be open or required, not {inference!r}")
        principals: dict[str, Principal] = {}
        for number, entry in enumerate(entries):
            where = f"--access: {path}: principals[{number}]"
            digest, principal = _principal(entry, where)
            if digest in principals or any(known.name == principal.name for known in principals.values()):
                raise ConfigurationError(f"{where}: name and key must be its own")
            principals[digest] = principal
        tokens = _tokens(document["jwt"], f"--access: {path}: jwt") if "jwt" in document else None
        return cls(principals, tokens, guards_inference=inference == "required")

    def authenticate(self, context: Context) -> Principal:
        """Who calls.

        Raises:
            UnauthenticatedError: when the key is missing or not known.
        """
        metadata = dict(context.invocation_metadata() or ())
        if self._principals is None:
            named = metadata.get("sparsity-actor", "")
            name = named if isinstance(named, str) and named else context.peer()
            return Principal(name, frozenset(Role))
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise UnauthenticatedError("the call carries no `authorization: Bearer KEY`; with the CLI set SPARSITY_KEY")
        # What is looked up is a digest: the time it takes tells nothing of a key.
        if (principal := self._principals.get(key_digest(key))) is not None:
            return principal
        if self.tokens is not None and key.count(".") == 2:
            return self.tokens.verify(key)
        raise UnauthenticatedError("the key is not known here")


def key_digest(key: str) -> str:
    """What the access file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _principal(entry: object, where: str) -> tuple[str, Principal]:
    known = {"name", "key_sha256", "roles", "domains", "tenant"}
    if not isinstance(entry, dict) or not {"name", "key_sha256", "roles"} <= entry.keys() <= known:
        raise ConfigurationError(
            f"{where}: must have name, key_sha256 and roles, may have domains and tenant, no other"
        )
    digest, roles, domains = entry["key_sha256"], entry["roles"], entry.get("domains", ["*"])
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigurationError(f"{where}.key_sha256: must be 64 lower-case hexadecimal digits")
    words = [role.value for role in Role]
    if not isinstance(roles, list) or not roles or not all(role in words for role in roles):
        raise ConfigurationError(f"{where}.roles: must be a list of {', '.join(words)}, not {roles!r}")
    if not isinstance(domains, list) or not all(isinstance(pattern, str) for pattern in domains):
        raise ConfigurationError(f"{where}.domains: must be a list of domain patterns, not {domains!r}")
    tenant = entry.get("tenant", "")
    if not isinstance(tenant, str):
        raise ConfigurationError(f"{where}.tenant: must be text, not {tenant!r}")
    return digest, Principal(str(entry["name"]), frozenset(map(Role, roles)), tuple(domains), tenant)


def _tokens(entry: object, where: str) -> JwtVerifier:
    needed, known = {"issuer", "audience", "keys"}, {field.name for field in fields(JwtConfig)}
    if not isinstance(entry, dict) or not needed <= entry.keys() <= known:
        names = ", ".join(sorted(known))
        raise ConfigurationError(f"{where}: must have issuer, audience and keys, of {names}")
    if not all(isinstance(value, str) for value in entry.values()):
        raise ConfigurationError(f"{where}: every field must be text")
    try:
        return JwtVerifier(JwtConfig(**entry))
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
