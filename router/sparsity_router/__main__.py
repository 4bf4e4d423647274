"""`python -m sparsity_router`: one router process, or several that share a port."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsity_router.processes.early_signals import EARLY

if TYPE_CHECKING:
    from sparsity_router.config import RouterConfig


def read_config(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> RouterConfig:
    """What the command line says, else the environment, else a file; this process's own without arguments.

    The store's URL is whole: it has its files, and what only the environment holds of it.

    Raises:
        ConfigurationError: naming the option that is missing or cannot be used.
    """
    from dataclasses import replace

    from sparsity_policies.storage.redis_url import whole_url
    from sparsity_serving.options.settings import parser_of, read_settings

    from sparsity_router.config import PREFIX, RouterConfig

    parser = parser_of(RouterConfig, PREFIX, "python -m sparsity_router", __doc__)
    config = read_settings(RouterConfig, PREFIX, parser, arguments, environment)
    if config.redis_url is None:
        return config
    url = whole_url(config.redis_url, config.redis_ca, config.redis_cert, config.redis_key, environment)
    return replace(config, redis_url=url)


def main() -> int:
    """Runs the router; 0 after a clean stop, 2 when it cannot serve."""
    # Before all that takes time to import: a kill switch that comes meanwhile must not end the process.
    EARLY.keep()
    import logging

    from sparsity_rpc.errors import SparsityError
    from sparsity_serving.logs import configure_logs

    try:
        configure_logs(logging.getLogger())
        config = read_config()
        if config.processes > 1:
            from sparsity_router.models.document import digest_of
            from sparsity_router.processes import shared_port

            own = {"--metrics-listen": config.metrics_listen, "--health-listen": config.health_listen}
            shared = {"--listen": config.listen, "--http-listen": config.http_listen}
            # One port must not serve other models by connection: who is started again reads what the first ones read.
            read = ["--models-digest", digest_of(config.models)] if config.models else []
            return shared_port.run([*sys.argv[1:], *read], shared, config.processes, own)
        from sparsity_router.server import run

        run(config)
    except SparsityError as error:
        print(f"sparsity-router: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
