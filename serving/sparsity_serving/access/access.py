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
sets and ends overrides, the kill switch; an operator drains workers, which take the same file. A principal with a
tenant sends that tenant's requests only.

The file is taken up anew when it changes (:mod:`sparsity_serving.background.reloading`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from sparsity_rpc.errors import ConfigurationError, UnauthenticatedError

from sparsity_serving.access.jwt import REFRESH_SECONDS, JwtConfig, JwtVerifier
from sparsity_serving.access.options_file import read_options_file
from sparsity_serving.access.principals import Principal, Role

Context = grpc.aio.ServicerContext[Any, Any]
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Rules(NamedTuple):
    """What an access file says.

    Attributes:
        principals: by the hash of their keys; None opens everything.
        tokens: the verifier of tokens; None takes none.
        guards_inference: whether InferenceService asks for a principal, too.
    """

    principals: Mapping[str, Principal] | None = None
    tokens: JwtVerifier | None = None
    guards_inference: bool = False


class Access:
    """The rules as they are now; without any, all may do everything."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    @classmethod
    def load(cls, path: Path | None) -> Access:
        """Reads an access file; None opens everything.

        Raises:
            ConfigurationError: naming the file and the entry.
        """
        return cls(Rules() if path is None else read_rules(path))

    @property
    def guards_inference(self) -> bool:
        """Whether InferenceService asks for a principal."""
        return self._rules.guards_inference

    def read(self, path: Path) -> Rules:
        """What the file says now; the issuer of tokens is asked for its keys only where the file names another.

        Raises:
            ConfigurationError: naming the file and the entry.
        """
        return read_rules(path, self._rules.tokens)

    def adopt(self, rules: Rules) -> None:
        """Goes by other rules from the next call on."""
        self._rules = rules

    async def follow_keys(self) -> None:
        """Keeps the keys of tokens current, for as long as it runs."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if self._rules.tokens is not None:
                await self._rules.tokens.refresh()

    def authenticate(self, context: Context) -> Principal:
        """Who calls.

        Raises:
            UnauthenticatedError: when the key is missing or not known.
        """
        metadata = dict(context.invocation_metadata() or ())
        principals, tokens, _ = self._rules
        if principals is None:
            named = metadata.get("sparsity-actor", "")
            name = named if isinstance(named, str) and named else context.peer()
            return Principal(name, frozenset(Role))
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise UnauthenticatedError("the call carries no `authorization: Bearer KEY`; with the CLI set SPARSITY_KEY")
        # What is looked up is a digest: the time it takes tells nothing of a key.
        if (principal := principals.get(key_digest(key))) is not None:
            return principal
        if tokens is not None and key.count(".") == 2:
            return tokens.verify(key)
        raise UnauthenticatedError("the key is not known here")


def read_rules(path: Path, known: JwtVerifier | None = None) -> Rules:
    """What an access file says; ``known`` goes on where it verifies the tokens that the file names.

    Raises:
        ConfigurationError: naming the file and the entry.
    """
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
        if digest in principals or any(each.name == principal.name for each in principals.values()):
            raise ConfigurationError(f"{where}: name and key must be its own")
        principals[digest] = principal
    tokens = _tokens(document["jwt"], f"--access: {path}: jwt", known) if "jwt" in document else None
    return Rules(principals, tokens, inference == "required")


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


def _tokens(entry: object, where: str, known: JwtVerifier | None) -> JwtVerifier:
    needed, allowed = {"issuer", "audience", "keys"}, {field.name for field in fields(JwtConfig)}
    if not isinstance(entry, dict) or not needed <= entry.keys() <= allowed:
        names = ", ".join(sorted(allowed))
        raise ConfigurationError(f"{where}: must have issuer, audience and keys, of {names}")
    if not all(isinstance(value, str) for value in entry.values()):
        raise ConfigurationError(f"{where}: every field must be text")
    try:
        config = JwtConfig(**entry)
        return known if known is not None and known.config == config else JwtVerifier(config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
