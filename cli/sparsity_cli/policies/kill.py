"""The kill switch: cap the tier of everything, a domain, a tenant or a tier."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sparsity.v1 import inference_pb2, policy_pb2
from sparsity_policies.model import Scope
from sparsity_rpc.errors import InvalidRequestError, NotFoundError

from sparsity_cli.console import (
    DEFAULT_ROUTER,
    AsJson,
    Router,
    clock,
    err,
    escaped,
    out,
    print_json,
    tier_word,
    to_dict,
)
from sparsity_cli.policies.service import Reason, need_reason, seconds, service
from sparsity_cli.requests.prompts import read_tier

Routers = Annotated[
    list[str],
    typer.Option(
        "--router", envvar="SPARSITY_ROUTER", help="A router's address; repeat for each while the store is down."
    ),
]


def kill(
    domain: Annotated[str, typer.Option(help="Only this domain.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    tier: Annotated[str, typer.Option(help="Only requests that policy gives this tier.")] = "",
    max_tier: Annotated[str, typer.Option(help="No tier sparser than this.")] = "dense",
    for_: Annotated[str, typer.Option("--for", help="Ends by itself after this time, such as 30m.")] = "",
    override_id: Annotated[
        str,
        typer.Option("--id", help="The override's id; made up when left out. Guards alone set those of `guard-`."),
    ] = "",
    reason: Reason = "",
    router: Routers = [DEFAULT_ROUTER],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make everything dense at once, or one domain, tenant or tier.

    It acts on the router that is asked at once, and reaches the others through the store. While the store is down, name
    every router.
    """
    results = []
    for address in router:
        with service(address) as api:
            need_reason(reason)
            override = _override(domain, tenant, tier)
            if domain:
                # One that is misspelt would be thought safe.
                api.get(domain)
            override.id, override.reason = override_id, reason
            override.max_tier = read_tier(max_tier) or inference_pb2.TIER_DENSE
            request = policy_pb2.PutOverrideRequest(override=override)
            if for_:
                request.ttl.FromMilliseconds(int(seconds(for_, "--for") * 1000))
            answer = api.call("PutOverride", request)
            results.append(answer)
            override_id = answer.override.id
            if not as_json:
                reach = (
                    ""
                    if answer.stored
                    else f" on {address} only: its store is down, or it has none; name the other routers too"
                )
                out.print(
                    f"{escaped(_words(answer.override))} [{answer.override.id}]{reach}", markup=False, soft_wrap=True
                )
    if as_json:
        print_json([to_dict(answer) for answer in results])


def _override(domain: str, tenant: str, tier: str) -> policy_pb2.Override:
    given = [(scope, name) for scope, name in ((2, domain), (3, tenant), (4, tier)) if name]
    if len(given) > 1:
        raise InvalidRequestError.of("--domain", "give one of --domain, --tenant and --tier, or none for everything")
    scope, target = given[0] if given else (1, "")
    return policy_pb2.Override(scope=scope, target=target)  # type: ignore[arg-type]


def _words(override: policy_pb2.Override) -> str:
    scope = Scope(override.scope)
    what = "everything" if scope is Scope.GLOBAL else f"{scope.name.lower()} {override.target}"
    until = f" until {clock(override.expire_time)}" if override.HasField("expire_time") else ""
    return f"{what} is {tier_word(override.max_tier or 1)} at most{until}: {override.reason}"


def unkill(
    override_id: Annotated[str, typer.Argument(metavar="[ID]", help="The override's id.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="End every override.")] = False,
    router: Routers = [DEFAULT_ROUTER],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """End an override. One set by a signal to a router's process has the id `signal`; SIGUSR2 ends it, too."""
    ended: dict[str, None] = {}
    for address in router:
        with service(address) as api:
            if bool(override_id) == all_:
                raise InvalidRequestError.of("ID", "give the id that `kill` or `overrides` printed, or --all")
            there = api.call("ListOverrides", policy_pb2.ListOverridesRequest()).overrides
            for name in [override.id for override in there] if all_ else [override_id]:
                try:
                    api.call("DeleteOverride", policy_pb2.DeleteOverrideRequest(id=name))
                except NotFoundError:
                    # The store told this router before we did.
                    if name not in ended:
                        raise
                ended[name] = None
    if as_json:
        print_json({"ended": list(ended)})
        return
    for name in ended:
        out.print(f"{name}: ended", markup=False)
    if not ended:
        err.print("there is no override")


def overrides(router: Router = DEFAULT_ROUTER, as_json: AsJson = False) -> None:
    """List the overrides that act on a router now."""
    with service(router) as api:
        found = api.call("ListOverrides", policy_pb2.ListOverridesRequest()).overrides
        if as_json:
            print_json([to_dict(override) for override in found])
            return
        table = Table("id", "what", "actor", box=None)
        for override in found:
            table.add_row(*(escaped(cell) for cell in (override.id, _words(override), override.actor)))
        out.print(table)
