"""What was: revisions, rolling back, and the audit log."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sparsity.v1 import policy_pb2

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, clock, err, escaped, out, print_json, to_dict
from sparsity_cli.policies.service import MOST_REVISION, DomainArgument, Reason, need_reason, service

Limit = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="At most this many.")]


def history(
    domain: DomainArgument, limit: Limit = 20, router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """List the revisions of a policy, newest first."""
    with service(router) as api:
        request = policy_pb2.ListPolicyRevisionsRequest(domain=domain)
        found: list[policy_pb2.StoredPolicy] = api.newest("ListPolicyRevisions", request, "revisions", limit)
        if as_json:
            print_json([to_dict(stored) for stored in found])
            return
        table = Table("revision", "time", "actor", "reason", box=None)
        for stored in found:
            reason = f"deleted: {stored.reason}" if stored.deleted else stored.reason
            table.add_row(str(stored.revision), clock(stored.update_time), escaped(stored.actor), escaped(reason))
        out.print(table)


def rollback(
    domain: DomainArgument,
    to_revision: Annotated[
        int,
        typer.Option("--to-revision", min=1, max=MOST_REVISION, help="The revision whose document comes back."),
    ],
    reason: Reason = "",
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Write an old revision's document as a new revision."""
    with service(router) as api:
        need_reason(reason)
        request = policy_pb2.RollbackPolicyRequest(domain=domain, to_revision=to_revision, reason=reason)
        stored = api.call("RollbackPolicy", request).policy
        if as_json:
            print_json(to_dict(stored))
            return
        out.print(f"{domain}: the document of revision {to_revision} is revision {stored.revision} now")


def audit(limit: Limit = 20, router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """List the calls that were made to the policy API, newest first, refused ones too."""
    with service(router) as api:
        request = policy_pb2.ListAuditEventsRequest()
        found: list[policy_pb2.AuditEvent] = api.newest("ListAuditEvents", request, "events", limit)
        if as_json:
            print_json([to_dict(event) for event in found])
            return
        table = Table("time", "actor", "method", "target", "status", "reason", box=None)
        for event in found:
            cells = (event.actor, event.method, event.target, event.status, event.reason)
            table.add_row(clock(event.time), *(escaped(cell) for cell in cells))
        out.print(table)
        err.print(f"[dim]{len(found)} calls[/dim]")
