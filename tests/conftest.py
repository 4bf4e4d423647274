from __future__ import annotations

import os

# Before anything imports grpc: its fork handlers can wait for its own shutdown for ever, when a test starts a process.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
