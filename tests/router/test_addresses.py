"""Ports that are chosen before what listens on them has started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sparsity_serving import addresses
from support.ports import free_ports


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which ports the system gives by itself; it is not there yet."""
    file = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(addresses, "_GIVEN", file)
    return file


def test_the_system_gives_a_free_port_to_nobody_else(given: Path) -> None:
    given.write_text("32768\t60999\n")
    found = {addresses.free_port() for _ in range(20)}
    assert len(found) > 1
    assert max(found) < 32_768


@pytest.mark.parametrize("told", ["1024\t60999\n", "", "many", None])
def test_where_the_system_gives_every_port_it_gives_this_one(told: str | None, given: Path) -> None:
    if told is not None:
        given.write_text(told)
    with socket.create_server(("127.0.0.1", addresses.free_port())) as server:
        assert server.getsockname()[1] >= 1024


def test_a_port_that_is_taken_is_passed_over(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_ports(2)
    monkeypatch.setattr(addresses, "_LEAST_PORT", first)
    given.write_text(f"{first + 2} 60999")
    with socket.create_server(("127.0.0.1", first)):
        assert {addresses.free_port() for _ in range(5)} == {first + 1}
