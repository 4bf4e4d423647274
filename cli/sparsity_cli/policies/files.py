"""Policy files that commands take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from sparsity_policies.documents.confined import EDITS
from sparsity_policies.documents.validate import check_exemplars
from sparsity_policies.model import Policy
from sparsity_rpc.errors import InvalidRequestError, Violation

Files = Annotated[list[Path], typer.Argument(help="YAML files, one policy each, or folders of them.")]


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files, with each folder's `*.yaml` in its place.

    Raises:
        InvalidRequestError: for a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise InvalidRequestError.of(str(path), "holds no *.yaml file")
        found += inside
    return found


def read_policies(paths: Iterable[Path]) -> dict[Path, Policy]:
    """Every policy; the mistakes of all files at once, those between files too.

    Raises:
        InvalidRequestError: with one violation a mistake, each at its file and line.
    """
    policies: dict[Path, Policy] = {}
    violations: list[Violation] = []
    for path in expand(paths):
        try:
            policies[path] = EDITS.load(path.read_text(encoding="utf-8"), str(path))
        except InvalidRequestError as error:
            violations += error.violations
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or error
            violations.append(Violation(str(path), f"cannot be read: {problem}"))
    seen: dict[str, Path] = {}
    for path, policy in policies.items():
        first = seen.setdefault(policy.domain, path)
        if first != path:
            violations.append(Violation(f"{path}: domain", f"{policy.domain} stands in {first} too; keep one"))
            continue
        others = [other for where, other in policies.items() if where != path]
        violations += [Violation(f"{path}: {v.field}", v.problem) for v in check_exemplars(policy, others)]
    if violations:
        raise InvalidRequestError(*violations)
    return policies
