"""The `sparsity` command line."""

import os

# The commands talk gRPC and start processes; gRPC's fork handlers can wait for each other for ever, and a process that
# runs another program at once needs none.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
