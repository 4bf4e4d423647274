"""The embedded Valkey is looked after."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import redis
from sparsity_router.embedded.store import EmbeddedStore
from sparsity_rpc.errors import ConfigurationError


def answers(store: EmbeddedStore) -> bool:
    try:
        with redis.Redis.from_url(store.url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def test_one_that_is_killed_is_started_again_with_its_data(tmp_path: Path) -> None:
    said: list[str] = []
    store = EmbeddedStore(tmp_path / "valkey", said.append)
    try:
        with redis.Redis.from_url(store.url) as client:
            client.set("kept", "yes")
            pid = client.info("server")["process_id"]
        store.look()
        assert said == [f"Valkey on port {store.port}"]
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 30.0
        while not (len(said) > 2 and answers(store)):
            assert time.monotonic() < until
            store.look()
            time.sleep(0.05)
        assert said[1:] == ["Valkey does not answer; it restarts", f"Valkey serves again on port {store.port}"]
        with redis.Redis.from_url(store.url, decode_responses=True) as client:
            assert client.get("kept") == "yes"
    finally:
        store.stop()
    assert not answers(store)


def test_data_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("no folder")
    with pytest.raises(ConfigurationError, match="embedded Valkey"):
        EmbeddedStore(tmp_path / "valkey", print)
