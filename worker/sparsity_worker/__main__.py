"""`python -m sparsity_worker`: one worker process."""

from __future__ import annotations

import logging
import sys

from sparsity.errors import SparsityError
from sparsity.logs import configure_logs
from sparsity.settings import parser_of, read_settings

from sparsity_worker.config import PREFIX, WorkerConfig


def main() -> int:
    """Runs the worker; 0 after a clean stop, 2 when it cannot serve."""
    # A handler of our own: SGLang sets the root logger up anew.
    logger = logging.getLogger("sparsity")
    logger.propagate = False
    try:
        configure_logs(logger)
        parser = parser_of(WorkerConfig, PREFIX, "python -m sparsity_worker", __doc__)
        config = read_settings(WorkerConfig, PREFIX, parser)
        from sparsity_worker.server import run

        run(config)
    except SparsityError as error:
        print(f"sparsity-worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
