"""`sparsity policy lint`: every mistake of policy files, without a router."""

from __future__ import annotations

from sparsity_cli.console import AsJson, err, out, print_json, reported
from sparsity_cli.policies.files import Files, read_policies


def lint(files: Files, as_json: AsJson = False) -> None:
    """Check policy files as a router would, without one; every mistake at its file and line."""
    with reported():
        policies = read_policies(files)
        if as_json:
            print_json([{"file": str(path), "domain": policy.domain} for path, policy in policies.items()])
            return
        for path, policy in policies.items():
            out.print(f"{path}: {policy.domain} is valid", soft_wrap=True)
        err.print(f"{len(policies)} files, no mistake")
