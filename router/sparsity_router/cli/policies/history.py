"""What was: revisions, rolling back, and the audit log."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sparsity.v1 import policy_pb2

from sparsity_router.cli.console import DEFAULT_ROUTER, AsJson, Router, clock, err, escaped, out, print_json, to_dict
from sparsity_router.cli.policies.service import DomainArgument, Reason, need_reason, service

Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]


def history(
    domain: DomainArgument, limit: Limit = 20, router: Router = DEFAULT_ROUTER, as_json: AsJson = False
) -> None:
    """List the revisions of a policy, newest first."""
    with service(router) as api:
        found: list[policy_pb2.StoredPolicy] = []
        request = policy_pb2.ListPolicyRevisionsRequest(domain=domain, page_size=min(limit, 100))
        while len(found) < limit:
            page = api.call("ListPolicyRevisions", request)
            found += page.revisions
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if as_json:
            print_json([to_dict(stored) for stored in found[:limit]])
            return
        table = Table("revision", "time", "actor", "reason", box=None)
        for stored in found[:limit]:
            reason = f"deleted: {stored.reason}" if stored.deleted else stored.reason
            table.add_row(str(stored.revision), clock(stored.update_time), escaped(stored.actor), escaped(reason))
        out.print(table)


def rollback(
    domain: DomainArgument,
    to_revision: Annotated[int, typer.Option("--to-revision", help="The revision whose document comes back.")],
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
        found: list[policy_pb2.AuditEvent] = []
        request = policy_pb2.ListAuditEventsRequest(page_size=min(limit, 100))
        while len(found) < limit:
            page = api.call("ListAuditEvents", request)
            found += page.events
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if as_json:
            print_json([to_dict(event) for event in found[:limit]])
            return
        table = Table("time", "actor", "method", "target", "status", "reason", box=None)
        for event in found[:limit]:
            cells = (event.actor, event.method, event.target, event.status, event.reason)
            table.add_row(clock(event.time), *(escaped(cell) for cell in cells))
        out.print(table)
        err.print(f"[dim]{min(len(found), limit)} calls[/dim]")
