"""Callers, and what they may do."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from enum import StrEnum

from sparsity_rpc.errors import PermissionDeniedError


class Role(StrEnum):
    """What a principal may do."""

    CALLER = "caller"
    VIEWER = "viewer"
    EDITOR = "editor"
    BREAKER = "breaker"
    OPERATOR = "operator"


_POLICY_ROLES = frozenset({Role.VIEWER, Role.EDITOR, Role.BREAKER})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller.

    Attributes:
        name: for audit and errors.
        roles: what it may do.
        domains: patterns of what an editor may edit.
        tenant: whose requests it may send; empty may name any.
    """

    name: str
    roles: frozenset[Role]
    domains: tuple[str, ...] = ("*",)
    tenant: str = ""

    def require(self, role: Role, domain: str = "") -> None:
        """Checks that the principal has ``role``, for an editor also over ``domain``.

        Raises:
            PermissionDeniedError: when it has not.
        """
        allowed = bool(self.roles & _POLICY_ROLES) if role is Role.VIEWER else role in self.roles
        if not allowed:
            held = ", ".join(sorted(self.roles)) or "none"
            raise PermissionDeniedError(f"{self.name} lacks the role {role.value}; it has {held}")
        if role is Role.EDITOR and not any(fnmatch.fnmatchcase(domain, pattern) for pattern in self.domains):
            raise PermissionDeniedError(f"{self.name} may edit {', '.join(self.domains)}, not {domain!r}")

    def tenant_of(self, asked: str) -> str:
        """The tenant of a request that names ``asked``.

        Raises:
            PermissionDeniedError: when it is another's.
        """
        if self.tenant and asked not in ("", self.tenant):
            raise PermissionDeniedError(f"{self.name} sends requests of tenant {self.tenant}, not {asked!r}")
        return self.tenant or asked
