"""Who may do what with policies: keys and roles from a YAML file.

    principals:
      - name: ann
        key_sha256: 5e88...                  # of the key that `sparsity policy new-key` prints
        roles: [viewer, editor, breaker]
        domains: [rag, "support-*"]          # what an editor may edit; all when left out

A viewer reads; an editor also writes policies and moves rollouts; a breaker also sets and ends overrides, the kill
switch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import yaml
from sparsity.errors import ConfigurationError, PermissionDeniedError, UnauthenticatedError

Context = grpc.aio.ServicerContext[Any, Any]
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Role(StrEnum):
    """What a principal may do."""

    VIEWER = "viewer"
    EDITOR = "editor"
    BREAKER = "breaker"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller; ``domains`` are patterns of what an editor may edit."""

    name: str
    roles: frozenset[Role]
    domains: tuple[str, ...] = ("*",)

    def require(self, role: Role, domain: str = "") -> None:
        """Checks that the principal has ``role``, for an editor also over ``domain``.

        Raises:
            PermissionDeniedError: when it has not.
        """
        allowed = bool(self.roles) if role is Role.VIEWER else role in self.roles
        if not allowed:
            held = ", ".join(sorted(self.roles)) or "none"
            raise PermissionDeniedError(f"{self.name} lacks the role {role.value}; it has {held}")
        if role is Role.EDITOR and not any(fnmatch.fnmatchcase(domain, pattern) for pattern in self.domains):
            raise PermissionDeniedError(f"{self.name} may edit {', '.join(self.domains)}, not {domain!r}")


class Access:
    """The principals by the hash of their keys; without any, every caller may do everything."""

    def __init__(self, principals: Mapping[str, Principal] | None) -> None:
        self._principals = principals

    @classmethod
    def load(cls, path: Path | None) -> Access:
        """Reads an access file; None opens everything.

        Raises:
            ConfigurationError: naming the file and the entry.
        """
        if path is None:
            return cls(None)
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"--access: {path}: cannot be read: {error}") from error
        entries = document.get("principals") if isinstance(document, dict) else None
        if not isinstance(entries, list) or not entries:
            raise ConfigurationError(f"--access: {path}: must have a list `principals`")
        principals: dict[str, Principal] = {}
        for number, entry in enumerate(entries):
            where = f"--access: {path}: principals[{number}]"
            digest, principal = _principal(entry, where)
            if digest in principals or any(known.name == principal.name for known in principals.values()):
                raise ConfigurationError(f"{where}: name and key must be its own")
            principals[digest] = principal
        return cls(principals)

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
        digest = key_digest(key)
        for known, principal in self._principals.items():
            if hmac.compare_digest(known, digest):
                return principal
        raise UnauthenticatedError("the key is not known here")


def key_digest(key: str) -> str:
    """What the access file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _principal(entry: object, where: str) -> tuple[str, Principal]:
    known = {"name", "key_sha256", "roles", "domains"}
    if not isinstance(entry, dict) or not {"name", "key_sha256", "roles"} <= entry.keys() <= known:
        raise ConfigurationError(f"{where}: must have name, key_sha256, roles and perhaps domains, and no other field")
    digest, roles, domains = entry["key_sha256"], entry["roles"], entry.get("domains", ["*"])
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigurationError(f"{where}.key_sha256: must be 64 lower-case hexadecimal digits")
    words = [role.value for role in Role]
    if not isinstance(roles, list) or not roles or not all(role in words for role in roles):
        raise ConfigurationError(f"{where}.roles: must be a list of {', '.join(words)}, not {roles!r}")
    if not isinstance(domains, list) or not all(isinstance(pattern, str) for pattern in domains):
        raise ConfigurationError(f"{where}.domains: must be a list of domain patterns, not {domains!r}")
    return digest, Principal(str(entry["name"]), frozenset(map(Role, roles)), tuple(domains))
