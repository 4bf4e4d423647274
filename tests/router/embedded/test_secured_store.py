"""A router over stores that demand TLS, certificates and passwords, by its options and by its environment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sparsity.v1 import policy_pb2
from sparsity_cli.main import app
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.redis_url import RedisTls, read_url
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.config import RouterConfig
from sparsity_router.embedded.child import Child
from sparsity_router.embedded.supervisor import Supervisor, UpConfig
from support.routers.router import running, until
from support.routers.router_process import RouterProcess
from support.stores.redis_security import PASSWORD, Security
from support.stores.redis_server import RedisServer, sentinel
from support.stores.redis_server import until as told
from support.tiny import tiny_model
from typer.testing import CliRunner


async def test_a_router_follows_through_a_failover(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    with sentinel(tmp_path, security) as (url, primary, replica):
        config = RouterConfig(tiny_model(tmp_path / "model"), ("127.0.0.1:1",), url, "127.0.0.1:0")
        async with running(config) as router:
            assert PASSWORD not in repr(config)
            await router.edit(bands=[(0, 3)])
            await router.becomes("TIER_AGGRESSIVE")
            await asyncio.to_thread(primary.kill)
            # While no server is there: it acts here at once, and is delivered later.
            killed = policy_pb2.Override(id="outage", scope=policy_pb2.OVERRIDE_SCOPE_GLOBAL, reason="test")
            await router.policy.PutOverride(policy_pb2.PutOverrideRequest(override=killed))
            assert (await router.tier())[0] == "TIER_DENSE"
            store = PolicyStore(url, timeout=5.0)

            async def delivered() -> bool:
                try:
                    return [override.id for override in (await store.read()).overrides] == ["outage"]
                except Exception:
                    return False

            await until(delivered, 30)
            with replica.client() as client:
                assert client.info("replication")["role"] == "master"
            # Another's writes on the new server reach it, too.
            await store.delete_override("outage")
            await router.becomes("TIER_AGGRESSIVE")
            await store.put_override(Override("other", Scope.GLOBAL, reason="r"))
            await router.becomes("TIER_DENSE")
            await store.close()


def test_the_environment_logs_in_and_nothing_shows_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    security = Security.make(tmp_path)
    with RedisServer(tmp_path, security=security) as server:
        place = f"127.0.0.1:{server.port}"
        monkeypatch.setenv("SPARSITY_REDIS_URL", f"rediss://{place}")
        monkeypatch.setenv("SPARSITY_REDIS_PASSWORD", PASSWORD)
        monkeypatch.setenv("SPARSITY_REDIS_CA", str(security.ca))
        with RouterProcess(tmp_path, "--redis-cert", str(security.cert), "--redis-key", str(security.key)) as router:
            command = Path(f"/proc/{router.pid}/cmdline").read_text()
            server.kill()
            told(lambda: "policy store: ConnectionError" in router.log.read_text())
        log = router.log.read_text()
        assert PASSWORD not in command + log


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"SPARSITY_REDIS_CA": "other.pem"}, "give that by --redis-ca"),
        ({"SPARSITY_REDIS_PASSWORD": "not/it@all"}, "give the right SPARSITY_REDIS_PASSWORD"),
        ({"SPARSITY_REDIS_PASSWORD": ""}, "give the right SPARSITY_REDIS_PASSWORD"),
        ({"SPARSITY_REDIS_CERT": "", "SPARSITY_REDIS_KEY": ""}, "give --redis-cert and --redis-key"),
        ({"SPARSITY_REDIS_KEY": ""}, "(--redis-cert, --redis-key): give both"),
        ({"SPARSITY_REDIS_CA": "missing.pem"}, "--redis-ca: missing.pem: No such file"),
        ({"SPARSITY_REDIS_URL": "redis://{place}"}, "goes with --redis-ca, but begins with redis://"),
        ({"SPARSITY_REDIS_URL": "rediss://:{password}@{place}?ssl=true"}, "asks for TLS by `ssl`"),
    ],
)
def test_a_router_that_cannot_log_in_ends_with_one_line(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    security = Security.make(tmp_path)
    with RedisServer(tmp_path, security=security) as server:
        place = f"127.0.0.1:{server.port}"
        right = {"URL": f"rediss://{place}", "PASSWORD": PASSWORD}
        right |= {"CA": str(security.ca), "CERT": str(security.cert), "KEY": str(security.key)}
        own = {f"SPARSITY_REDIS_{name}": value for name, value in right.items()}
        own |= {name: value.format(place=place, password="secret/pw") for name, value in changed.items()}
        command = [sys.executable, "-m", "sparsity_router", "--model", str(tiny_model(tmp_path / "model"))]
        command += ["--worker", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--detect", "off"]
        ended = subprocess.run(
            command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
    assert ended.returncode == 2
    told = ended.stderr.strip().splitlines()[-1]
    assert told.startswith("sparsity-router: --redis-")
    assert words in told
    assert "Traceback" not in ended.stderr
    for secret in (PASSWORD, "not/it@all", "secret/pw"):
        assert secret not in ended.stderr + ended.stdout


def test_the_embedded_service_takes_a_secured_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    security, taken = Security.make(tmp_path), []
    monkeypatch.setattr(Supervisor, "run", lambda self: taken.append(self._config))
    monkeypatch.setenv("SPARSITY_REDIS_PASSWORD", PASSWORD)
    files = ["--redis-ca", str(security.ca), "--redis-cert", str(security.cert), "--redis-key", str(security.key)]
    done = CliRunner().invoke(app, ["up", "--state", str(tmp_path), "--redis-url", "rediss+sentinel://h/m", *files])
    assert done.exit_code == 0, done.output
    (config,) = taken
    read = read_url(config.redis_url)
    assert (read.login.password, read.tls) == (
        PASSWORD,
        RedisTls(*map(str, (security.ca, security.cert, security.key))),
    )
    assert PASSWORD not in repr(config)
    refused = CliRunner().invoke(app, ["up", "--redis-url", "redis://h", *files])
    assert refused.exit_code == 2
    assert "goes with --redis-ca, but begins with redis://" in refused.output


def test_the_embedded_service_shows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the router's command line nor in the note of what runs."""
    monkeypatch.setattr(Child, "start", lambda self: None)
    monkeypatch.setenv("SPARSITY_REDIS_PASSWORD", "of another store")
    (tmp_path / "logs").mkdir()
    url = "redis://:secret@h:1/0"
    supervisor = Supervisor(UpConfig(tmp_path, "127.0.0.1:7000", redis_url=url), lambda line: None)
    supervisor._start_children(tmp_path / "model", url)
    supervisor._note(tmp_path / "model", url, 1.0)
    assert supervisor._router is not None
    assert "secret" not in " ".join(supervisor._router.arguments)
    assert supervisor._router.environment["SPARSITY_REDIS_URL"] == url
    assert supervisor._router.environment["SPARSITY_REDIS_PASSWORD"] == ""
    note = (tmp_path / "up.json").read_text()
    assert "redis://h:1/0" in note
    assert "secret" not in note
