"""`sparsity policy`: read and write policies."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
import yaml
from rich.table import Table
from sparsity.errors import InvalidRequestError, Violation
from sparsity.v1 import policy_pb2, policy_pb2_grpc
from sparsity_policies.document import load_yaml, to_document
from sparsity_policies.model import Policy
from sparsity_policies.wire import policy_from_wire, policy_to_wire

from sparsity_router.cli.console import DEFAULT_ROUTER, AsJson, Router, err, out, print_json, reported, to_dict

app = typer.Typer(help="Read and write risk policies.", no_args_is_help=True)


@contextmanager
def _service(router: str) -> Iterator[policy_pb2_grpc.PolicyServiceStub]:
    with reported(), grpc.insecure_channel(router) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


@app.command("get")
def get(
    domain: Annotated[str, typer.Argument(help="The policy's domain.")],
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Print one policy as YAML that `apply` takes; its revision goes to stderr."""
    with _service(router) as service:
        stored = service.GetPolicy(policy_pb2.GetPolicyRequest(domain=domain), timeout=5.0).policy
        if as_json:
            print_json(to_dict(stored))
            return
        document = to_document(policy_from_wire(stored.policy))
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)
        err.print(f"[dim]revision {stored.revision}, etag {stored.etag}, by {stored.actor}: {stored.reason}[/dim]")


@app.command("list")
def list_policies(router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """List all policies."""
    with _service(router) as service:
        found: list[policy_pb2.StoredPolicy] = []
        request = policy_pb2.ListPoliciesRequest()
        while True:
            page = service.ListPolicies(request, timeout=5.0)
            found += page.policies
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if as_json:
            print_json({"revision": page.revision, "policies": [to_dict(stored) for stored in found]})
            return
        table = Table("domain", "risk", "bands", "rules", "revision", "owner", box=None)
        for stored in found:
            policy = policy_from_wire(stored.policy)
            bands = ", ".join(f"{band.from_tokens}+ {band.tier.word}" for band in policy.bands)
            rules = str(len(policy.rules))
            table.add_row(policy.domain, policy.risk.name.lower(), bands, rules, str(stored.revision), policy.owner)
        out.print(table)


@app.command("apply")
def apply(
    files: Annotated[list[Path], typer.Argument(help="YAML files, one policy each.")],
    reason: Annotated[str, typer.Option(help="Why, for the revision log.")] = "",
    etag: Annotated[str | None, typer.Option(help="Write only over this etag; '' only creates.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run every check, change nothing.")] = False,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Validate every file, then write them; nothing is written when one is wrong."""
    with _service(router) as service:
        if not dry_run and not reason:
            raise InvalidRequestError.of("--reason", "is missing; say why, or use --dry-run")
        policies = _read(files)
        results = [
            service.PutPolicy(
                policy_pb2.PutPolicyRequest(
                    policy=policy_to_wire(policy), etag=etag, validate_only=dry_run, reason=reason
                ),
                timeout=5.0,
                metadata=(("sparsity-actor", getpass.getuser()),),
            ).policy
            for policy in policies
        ]
        if as_json:
            print_json([to_dict(stored) for stored in results])
            return
        for stored in results:
            done = "is valid, nothing was written" if dry_run else f"written at revision {stored.revision}"
            out.print(f"{stored.policy.domain}: {done}")


def _read(files: list[Path]) -> list[Policy]:
    """Every policy of ``files``; the mistakes of all of them at once."""
    policies: list[Policy] = []
    violations: list[Violation] = []
    for path in files:
        try:
            policies.append(load_yaml(path.read_text(encoding="utf-8"), str(path)))
        except InvalidRequestError as error:
            violations += error.violations
        except (OSError, UnicodeDecodeError) as error:
            problem: Any = getattr(error, "strerror", None) or error
            violations += InvalidRequestError.of(str(path), f"cannot be read: {problem}").violations
    if violations:
        raise InvalidRequestError(*violations)
    return policies
