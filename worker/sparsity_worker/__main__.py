"""`python -m sparsity_worker`: one worker process."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

from sparsity_rpc.errors import SparsityError
from sparsity_serving.logs import configure_logs
from sparsity_serving.options.settings import parser_of, read_settings

from sparsity_worker.config import PREFIX, WorkerConfig


def read_config(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> WorkerConfig:
    """What the command line says, else the environment, else a file; this process's own without arguments.

    Raises:
        ConfigurationError: naming the option that is missing or cannot be used.
    """
    parser = parser_of(WorkerConfig, PREFIX, "python -m sparsity_worker", __doc__)
    return read_settings(WorkerConfig, PREFIX, parser, arguments, environment)


def main() -> int:
    """Runs the worker; 0 after a clean stop, 2 when it cannot serve."""
    # There is nothing to read anew before it serves; a model may take minutes to load.
    signal.signal(signal.SIGHUP, lambda *_: None)
    # A handler of our own: SGLang sets the root logger up anew.
    logger = logging.getLogger("sparsity")
    logger.propagate = False
    try:
        configure_logs(logger)
        config = read_config()
        from sparsity_worker.server import run

        run(config)
    except SparsityError as error:
        print(f"sparsity-worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
