"""Policies as files: differences, export and import."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from sparsity.v1 import policy_pb2
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Policy
from sparsity_policies.wire import policy_from_wire, policy_to_wire
from sparsity_rpc.errors import InvalidRequestError, NotFoundError

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, err, out, print_json
from sparsity_cli.policies.differences import difference, show
from sparsity_cli.policies.documents import at_revision
from sparsity_cli.policies.files import Files, read_policies
from sparsity_cli.policies.service import MOST_REVISION, Reason, Service, Yes, confirm, need_reason, service

Folder = Annotated[Path, typer.Argument(help="Folder of YAML files, one policy each.")]


def diff(
    targets: Annotated[list[str], typer.Argument(help="Files, folders, or one domain with --revision.")],
    revision: Annotated[
        int | None, typer.Option(min=1, max=MOST_REVISION, help="Compare the domain with this revision of it.")
    ] = None,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Show how files, or an old revision, differ from what the router serves. Exits with 1 when they do.

    A folder is compared whole: a domain that only the router has differs too.
    """
    with service(router) as api:
        if revision is not None:
            if len(targets) != 1:
                raise InvalidRequestError.of("--revision", "goes with one domain")
            old = policy_from_wire(at_revision(api, targets[0], revision).policy)
            now = policy_from_wire(api.get(targets[0]).policy)
            found = {targets[0]: difference(old, now, f"revision {revision}", "served")}
        else:
            found = _differences(api, [Path(target) for target in targets])
        changed = {domain: lines for domain, lines in found.items() if lines}
        if as_json:
            print_json({"differs": bool(changed), "domains": {name: "\n".join(d) for name, d in changed.items()}})
        else:
            for lines in changed.values():
                show(out, lines)
        if changed:
            raise typer.Exit(1)


def _differences(api: Service, paths: list[Path]) -> dict[str, list[str]]:
    files = {policy.domain: (path, policy) for path, policy in read_policies(paths).items()}
    served = {stored.policy.domain: policy_from_wire(stored.policy) for stored in api.list()[1]}
    whole = any(path.is_dir() for path in paths)
    found = {}
    for domain in sorted(files.keys() | (served.keys() if whole else set())):
        path, policy = files.get(domain, (Path("/dev/null"), None))
        found[domain] = difference(served.get(domain), policy, f"served {domain}", str(path))
    return found


def export(folder: Folder, router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """Write every policy to `FOLDER/DOMAIN.yaml`, where `diff`, `import` and `--policy-dir` take them."""
    with service(router) as api:
        revision, found = api.list()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stored in found:
                text = dump_yaml(policy_from_wire(stored.policy))
                (folder / f"{stored.policy.domain}.yaml").write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError.of(str(folder), f"cannot be written: {error.strerror}") from error
        if as_json:
            print_json({"revision": revision, "domains": [stored.policy.domain for stored in found]})
            return
        out.print(f"{len(found)} policies of revision {revision} written to {folder}", soft_wrap=True)


def import_(
    files: Files,
    reason: Reason = "",
    prune: Annotated[bool, typer.Option(help="Delete what the files do not have.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, change nothing.")] = False,
    yes: Yes = False,
    router: Router = DEFAULT_ROUTER,
    as_json: AsJson = False,
) -> None:
    """Make the store say what the files say: only what differs is written."""
    with service(router) as api:
        wanted = {policy.domain: policy for policy in read_policies(files).values()}
        there = {stored.policy.domain: stored for stored in api.list()[1]}
        present = {domain: policy_from_wire(stored.policy) for domain, stored in there.items()}
        changed = {domain: policy for domain, policy in sorted(wanted.items()) if present.get(domain) != policy}
        gone = sorted(present.keys() - wanted.keys()) if prune else []
        report = {"written": list(changed), "deleted": gone, "dry_run": dry_run}
        if not dry_run and (changed or gone):
            need_reason(reason, ", or use --dry-run")
            if gone:
                confirm(f"delete {', '.join(gone)}?", yes)
            _write(api, changed, there, reason)
            for domain in gone:
                _delete(api, there[domain], reason)
        if as_json:
            print_json(report)
            return
        for verb, domains in (("written", list(changed)), ("deleted", gone)):
            for domain in domains:
                out.print(f"{domain}: {'would be ' if dry_run else ''}{verb}")
        if not changed and not gone:
            err.print("the store says what the files say")


def _write(api: Service, changed: dict[str, Policy], there: dict[str, policy_pb2.StoredPolicy], reason: str) -> None:
    for domain, policy in changed.items():
        etag = there[domain].etag if domain in there else ""
        api.call("PutPolicy", policy_pb2.PutPolicyRequest(policy=policy_to_wire(policy), etag=etag, reason=reason))


def _delete(api: Service, stored: policy_pb2.StoredPolicy, reason: str) -> None:
    request = policy_pb2.DeletePolicyRequest(domain=stored.policy.domain, etag=stored.etag, reason=reason)
    # Somebody else may have deleted it meanwhile: it is gone, as wanted.
    with contextlib.suppress(NotFoundError):
        api.call("DeletePolicy", request)
