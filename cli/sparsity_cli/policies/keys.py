"""`sparsity policy new-key`: a key and its entry for a router's access file."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer
import yaml
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.access.access import key_digest
from sparsity_serving.access.principals import Role

from sparsity_cli.console import AsJson, err, print_json, reported


def new_key(
    name: Annotated[str, typer.Argument(help="Who gets it.")],
    role: Annotated[list[str], typer.Option("--role", help="caller, viewer, editor, breaker, operator; repeat.")],
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="What an editor may edit; all when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key: the entry for `--access` goes to stdout, the key itself to stderr, once."""
    with reported():
        words = [known.value for known in Role]
        for one in role:
            if one not in words:
                raise InvalidRequestError.of("--role", f"must be one of {', '.join(words)}, not {one!r}")
        key = secrets.token_urlsafe(24)
        entry: dict[str, object] = {"name": name, "key_sha256": key_digest(key), "roles": role}
        if domain:
            entry["domains"] = domain
        if as_json:
            print_json({"key": key, "entry": entry})
            return
        typer.echo(yaml.safe_dump([entry], sort_keys=False), nl=False)
        err.print(f"SPARSITY_KEY={key}", soft_wrap=True)
