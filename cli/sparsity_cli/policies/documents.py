"""Get, list, apply and delete."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sparsity.v1 import policy_pb2
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.wire import policy_from_wire, policy_to_wire
from sparsity_rpc.errors import NotFoundError, SparsityError

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, err, escaped, out, print_json, to_dict
from sparsity_cli.policies.files import Files, read_policies
from sparsity_cli.policies.service import (
    MOST_REVISION,
    DomainArgument,
    Reason,
    Service,
    Yes,
    confirm,
    need_reason,
    service,
)


def get(
    domain: DomainArgument,
    revision: Annotated[int | None, typer.Option(min=1, max=MOST_REVISION, help="As it was at this revision.")] = None,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Print one policy as YAML that `apply` takes; its revision goes to stderr."""
    with service(router) as api:
        stored = api.get(domain) if revision is None else at_revision(api, domain, revision)
        if as_json:
            print_json(to_dict(stored))
            return
        typer.echo(dump_yaml(policy_from_wire(stored.policy)), nl=False)
        gone = ", deleted" if stored.deleted else ""
        about = f"revision {stored.revision}{gone}, etag {stored.etag}, by {stored.actor}: {stored.reason}"
        err.print(f"[dim]{escaped(about)}[/dim]", soft_wrap=True)


def at_revision(api: Service, domain: str, revision: int) -> policy_pb2.StoredPolicy:
    """A policy as it was.

    Raises:
        NotFoundError: when it never was at that revision.
        SparsityError: when the router refuses, or cannot be reached.
    """
    request = policy_pb2.ListPolicyRevisionsRequest(domain=domain, page_size=1, page_token=str(revision + 1))
    found: list[policy_pb2.StoredPolicy] = list(api.call("ListPolicyRevisions", request).revisions)
    if not found or found[0].revision != revision:
        known = api.call("ListPolicyRevisions", policy_pb2.ListPolicyRevisionsRequest(domain=domain)).revisions
        there = ", ".join(str(stored.revision) for stored in known[:10])
        raise NotFoundError(f"policy {domain!r} has no revision {revision}; its newest are {there}")
    return found[0]


def list_policies(router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """List all policies."""
    with service(router) as api:
        revision, found = api.list()
        if as_json:
            print_json({"revision": revision, "policies": [to_dict(stored) for stored in found]})
            return
        table = Table("domain", "risk", "bands", "rules", "rollout", "revision", "owner", box=None)
        for stored in found:
            policy = policy_from_wire(stored.policy)
            bands = ", ".join(f"{band.from_tokens}+ {band.tier.word}" for band in policy.bands)
            rollout = f"{policy.rollout.percent} % {policy.rollout.state}" if policy.rollout else "-"
            cells = (policy.domain, policy.risk.name.lower(), bands, str(len(policy.rules)), rollout)
            table.add_row(*cells, str(stored.revision), escaped(policy.owner))
        out.print(table)


def apply(
    files: Files,
    reason: Reason = "",
    etag: Annotated[str | None, typer.Option(help="Write only over this etag; '' only creates.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run every check, change nothing.")] = False,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Validate every file, then write them; nothing is written when one is wrong."""
    with service(router) as api:
        if not dry_run:
            need_reason(reason, ", or use --dry-run")
        requests = [
            policy_pb2.PutPolicyRequest(policy=policy_to_wire(policy), etag=etag, reason=reason)
            for policy in read_policies(files).values()
        ]
        # The router knows what no file tells, such as other domains' exemplars: all are checked before one is written.
        results = [api.call("PutPolicy", _checking(request)).policy for request in requests]
        if not dry_run:
            results = _write_all(api, requests)
        if as_json:
            print_json([to_dict(stored) for stored in results])
            return
        for stored in results:
            done = "is valid, nothing was written" if dry_run else f"written at revision {stored.revision}"
            out.print(f"{stored.policy.domain}: {done}")


def _write_all(api: Service, requests: list[policy_pb2.PutPolicyRequest]) -> list[policy_pb2.StoredPolicy]:
    written: list[policy_pb2.StoredPolicy] = []
    try:
        for request in requests:
            written.append(api.call("PutPolicy", request).policy)
    except SparsityError:
        for stored in written:
            err.print(f"{stored.policy.domain}: was written at revision {stored.revision} before the failure")
        raise
    return written


def _checking(request: policy_pb2.PutPolicyRequest) -> policy_pb2.PutPolicyRequest:
    check = policy_pb2.PutPolicyRequest()
    check.CopyFrom(request)
    check.validate_only = True
    return check


def delete(
    domain: DomainArgument,
    reason: Reason = "",
    etag: Annotated[str | None, typer.Option(help="Delete only this etag.")] = None,
    yes: Yes = False,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Delete a policy: its domain is then unknown, so dense. `rollback` brings it back."""
    with service(router) as api:
        need_reason(reason)
        stored = api.get(domain)
        confirm(f"delete the policy of {domain}, whose requests are dense from then on?", yes)
        api.call("DeletePolicy", policy_pb2.DeletePolicyRequest(domain=domain, etag=etag, reason=reason))
        if as_json:
            print_json({"deleted": domain, "last_revision": stored.revision})
            return
        out.print(f"{domain}: deleted; back with: sparsity policy rollback {domain} --to-revision {stored.revision}")
