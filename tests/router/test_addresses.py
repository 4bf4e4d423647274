"""Ports that are chosen before what listens on them has started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sparsity_serving import addresses


def test_the_system_gives_a_free_port_to_nobody_else() -> None:
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = {addresses.free_port() for _ in range(20)}
    assert len(found) > 1
    assert max(found) < max(least, 20_000)


@pytest.mark.parametrize("told", ["1024\t60999\n", "", "many", None])
def test_where_the_system_gives_every_port_it_gives_this_one(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ip_local_port_range"
    if told is not None:
        file.write_text(told)
    monkeypatch.setattr(addresses, "_GIVEN", file)
    with socket.create_server(("127.0.0.1", addresses.free_port())) as server:
        assert server.getsockname()[1] >= 1024


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ip_local_port_range"
    file.write_text("20002 60999")
    monkeypatch.setattr(addresses, "_GIVEN", file)
    with socket.create_server(("127.0.0.1", 20_000)):
        assert {addresses.free_port() for _ in range(5)} == {20_001}
