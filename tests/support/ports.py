"""Ports that no other process of tests on this machine is given, and that the kernel gives nobody by itself."""

from __future__ import annotations

import functools
import socket

# Below the range in which Linux picks ports by itself (32768 on), where any connection may be in the way; so are the
# buses of a Redis Cluster, 10,000 above its ports.
FIRST, BLOCK, BLOCKS = 10_000, 200, 50


class Block:
    """Ports that are this process's: it holds an abstract socket named by their number for as long as it lives."""

    def __init__(self) -> None:
        self._taken = 0
        for number in range(BLOCKS):
            self._claim = socket.socket(socket.AF_UNIX)
            try:
                self._claim.bind(f"\0sparsity-tests-ports-{number}")
            except OSError:
                self._claim.close()
                continue
            self._first = FIRST + number * BLOCK
            return
        raise AssertionError(f"{BLOCKS} processes hold ports for tests")

    def reserve(self, count: int, host: str) -> int:
        """The first of ``count`` ports in a row on which nothing listens; one comes again after all others."""
        for _ in range(BLOCK):
            if self._taken + count > BLOCK:
                self._taken = 0
            first, self._taken = self._first + self._taken, self._taken + count
            if all(is_free(host, port) for port in range(first, first + count)):
                return first
        raise AssertionError(f"every port from {self._first} on is taken")


def is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


@functools.cache
def _own() -> Block:
    return Block()


def free_port(host: str = "127.0.0.1") -> int:
    return free_ports(1, host)


def free_ports(count: int, host: str = "127.0.0.1") -> int:
    """The first of ``count`` in a row: a router of several processes counts up from the port that it is given."""
    return _own().reserve(count, host)
