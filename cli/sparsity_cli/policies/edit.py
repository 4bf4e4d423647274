"""`sparsity policy edit`: a policy in your editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

from sparsity.v1 import policy_pb2
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.documents.yamlfile import dump_yaml
from sparsity_policies.model import Policy
from sparsity_policies.wire import policy_from_wire, policy_to_wire
from sparsity_rpc.errors import ConfigurationError, ConflictError, InvalidRequestError, SparsityError

from sparsity_cli.console import DEFAULT_ROUTER, AsJson, Router, err, escaped, out, print_json, to_dict
from sparsity_cli.policies.differences import as_comments, difference, show, three_way
from sparsity_cli.policies.service import DomainArgument, Reason, Service, service

_HEAD = ("Edit, save and leave. Lines that begin with # are not kept; an unchanged file changes nothing.",)


def edit(domain: DomainArgument, reason: Reason = "", router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """Open a policy in $VISUAL or $EDITOR, and write what you saved over what you read.

    A refused edit is opened again with the mistakes as comments. When somebody else wrote meanwhile, a three-way
    difference is shown, your edit is kept in a file, and nothing is written.
    """
    # What reads the edit loads while it is made.
    EDITS.prepare()
    with service(router) as api:
        stored = api.get(domain)
        base = policy_from_wire(stored.policy)
        yours = _edited(api, domain, base)
        if yours is None:
            err.print("nothing changed, nothing was written")
            if as_json:
                print_json(to_dict(stored))
            return
        show(err, difference(base, yours, f"revision {stored.revision}", "your edit"))
        request = policy_pb2.PutPolicyRequest(
            policy=policy_to_wire(yours), etag=stored.etag, reason=reason or "edited by hand"
        )
        try:
            written = api.call("PutPolicy", request).policy
        except SparsityError as error:
            _keep(api, domain, base, yours, error)
        if as_json:
            print_json(to_dict(written))
            return
        out.print(f"{domain}: written at revision {written.revision}")


def _edited(api: Service, domain: str, base: Policy) -> Policy | None:
    """The policy as it was saved; None when it says what it said."""
    head: list[str] = list(_HEAD)
    body = dump_yaml(base)
    refused: str | None = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{domain}.yaml"
        while True:
            path.write_text("\n".join([*as_comments(head), body]), encoding="utf-8")
            _run_editor(path)
            body = _without_head(path.read_text(encoding="utf-8", errors="replace"))
            try:
                policy = EDITS.load(path.read_text(encoding="utf-8"), path.name)
                if policy.domain != domain:
                    problem = f"must stay {domain}; a new domain comes by `sparsity policy apply`"
                    raise InvalidRequestError.of("domain", problem)
                if policy == base:
                    return None
                # A conflict is met when it is written, not here.
                check = policy_pb2.PutPolicyRequest(policy=policy_to_wire(policy), validate_only=True)
                api.call("PutPolicy", check)
                return policy
            except (InvalidRequestError, UnicodeDecodeError) as error:
                mistakes = [str(v) for v in getattr(error, "violations", ())] or [str(error)]
                if body == refused:
                    # Saved again as it was: nobody is going to mend it here.
                    kept = _save(domain, body)
                    raise InvalidRequestError.of(f"{kept}", "; ".join(mistakes)) from error
                refused = body
                head = ["Refused, nothing was written:", *(f"  {mistake}" for mistake in mistakes), *_HEAD]
            except SparsityError:
                err.print(f"your edit is in {_save(domain, body)}", soft_wrap=True)
                raise


def _keep(api: Service, domain: str, base: Policy, yours: Policy, error: SparsityError) -> NoReturn:
    """Puts the edit where it is not lost, and tells what to do with it."""
    path = _save(domain, dump_yaml(yours))
    if not isinstance(error, ConflictError):
        err.print(f"your edit is in {path}", soft_wrap=True)
        raise error
    now = api.get(domain)
    show(err, three_way(base, policy_from_wire(now.policy), yours))
    told = f"{now.actor} wrote revision {now.revision} meanwhile ({now.reason}); your edit is in {path}"
    remedy = f"mend it and run: sparsity policy apply {path} --etag {now.etag} --reason ..."
    raise ConflictError(f"policy {domain}: {told}; {remedy}") from error


def _save(domain: str, text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=f"{domain}-", suffix=".yaml")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def _without_head(text: str) -> str:
    lines = text.split("\n")
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    return "\n".join(lines)


def _run_editor(path: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(command), str(path)], check=False).returncode
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"$EDITOR: {command!r} cannot be run: {error}; set it to your editor") from error
    if code:
        raise ConfigurationError(f"$EDITOR: {escaped(command)} ended with {code}; nothing was written")
