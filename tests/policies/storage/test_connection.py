"""URLs of stores: what is in them, what may be shown of them, what completes them, and what is refused."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.connection import SSLConnection
from sparsity_policies.storage.connection import close, connect
from sparsity_policies.storage.redis_tls import secured_context
from sparsity_policies.storage.redis_url import (
    ENVIRONMENT,
    SCHEMES,
    RedisTls,
    completed_url,
    read_url,
    whole_url,
    without_credentials,
)
from sparsity_rpc.errors import ConfigurationError
from support.stores.redis_security import Security

ODD = "p/w@:#%2x"


def sentinels(client: Any) -> list[dict[str, Any]]:
    """Options of the connections to Sentinels."""
    return [each.connection_pool.connection_kwargs for each in client.connection_pool.sentinel_manager.sentinels]


@pytest.mark.parametrize("written", [ODD, "p%2Fw%40%3A%23%252x"])
async def test_a_password_ends_at_the_last_at_sign(written: str) -> None:
    client = connect(f"redis://ann:{written}@store.example:7001/2", 1.0)
    options = client.connection_pool.connection_kwargs
    found = (options["host"], options["port"], options["db"], options["username"], options["password"])
    assert found == ("store.example", 7001, 2, "ann", ODD)
    sentinel = connect(f"redis+sentinel://:{written}@one.example:1,two.example/main/3", 1.0)
    options = sentinel.connection_pool.connection_kwargs
    assert (options["password"], options["db"]) == (ODD, 3)
    told = sentinels(sentinel)
    assert [(each["host"], each["port"]) for each in told] == [("one.example", 1), ("two.example", 26379)]
    # The servers' password is nothing to Sentinels.
    assert [each.get("password") for each in told] == [None, None]
    for made in (client, sentinel):
        await close(made)


async def test_sentinels_have_a_login_of_their_own() -> None:
    url = f"redis+sentinel://u:pw@one:1/m?sentinel_username=watch&sentinel_password={ODD.replace('%', '%25')}"
    client = connect(url.replace("#", "%23"), 1.0)
    (told,) = sentinels(client)
    assert (told["username"], told["password"]) == ("watch", ODD)
    assert client.connection_pool.connection_kwargs["password"] == "pw"
    await close(client)


async def test_tls_reaches_servers_sentinels_and_nodes(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    wanted = {
        "ssl_ca_certs": str(security.ca),
        "ssl_certfile": str(security.cert),
        "ssl_keyfile": str(security.key),
        "ssl_check_hostname": True,
    }
    single = connect(security.url("rediss", "h:1"), 1.0)
    sentinel = connect(security.url("rediss+sentinel", "h:1,i:2", "/m"), 1.0)
    cluster = connect(security.url("rediss+cluster", "h:1"), 1.0)
    pools = [single.connection_pool, sentinel.connection_pool]
    pools += [each.connection_pool for each in sentinel.connection_pool.sentinel_manager.sentinels]
    assert len(pools) == 4
    for pool in pools:
        assert issubclass(pool.connection_class, SSLConnection)
        assert wanted.items() <= pool.connection_kwargs.items()
    node = cluster.nodes_manager.startup_nodes["h:1"]
    assert issubclass(node.connection_class, SSLConnection)
    assert wanted.items() <= cluster.connection_kwargs.items()
    for client in (single, sentinel, cluster):
        await close(client)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "rediss"])
def test_ipv6_hosts_stand_in_brackets(scheme: str) -> None:
    assert read_url(f"{scheme}://:p@[::1]:7001").hosts == (("::1", 7001),)
    assert read_url(f"{scheme}://[fe80::1%eth0]").hosts == (("fe80::1%eth0", 6379),)
    assert "[::1]:6379" in without_credentials(f"{scheme}://:p@[::1]")
    for wrong in ("::1", "::1:7001", "[::1", "::1]:7001"):
        with pytest.raises(ConfigurationError, match=r"IPv6 address stands in brackets"):
            read_url(f"{scheme}://{wrong}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p/w@host:1/0", "redis://host:1/0"),
        ("redis://ann:p@w@host:1/0", "redis://host:1/0"),
        ("rediss://host:1?password=secret", "rediss://host:1/0"),
        ("redis+cluster://u:p/w@a:1,b:2", "redis+cluster://a:1,b:2"),
        ("rediss+sentinel://u:p@a,b/m?sentinel_password=secret", "rediss+sentinel://a:26379,b:26379/m/0"),
        ("unix:///run/a@b.sock?password=secret", "unix:///run/a@b.sock"),
    ],
)
def test_what_is_shown_holds_no_password(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert "secret" not in repr(read_url(url))
    assert "p/w" not in repr(read_url(url))


@pytest.mark.parametrize(
    "url",
    [
        # A question mark, a number of a port, and a scheme where none belongs.
        "redis://:secret?x@host:1",
        "redis://user:1?secret@host:1",
        "redis://:secret:6379",
        "redis://host:secret",
        "secret",
        "redis:secret@host",
        "redis+sentinel://a:1,:secret/m",
        "redis://host:1/secret",
        "redis://host:1?db=secret",
        "rediss://host:1?ssl_check_hostname=secret",
    ],
)
def test_a_url_that_cannot_be_read_shows_nothing(url: str) -> None:
    assert "secret" not in without_credentials(url)
    with pytest.raises(ConfigurationError, match="--redis-url: ") as caught:
        connect(url, 1.0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "must begin with one of redis://"),
        ("redis+sentinel://h:1", "names no master"),
        ("redis+sentinel://h:1/m/x", "no number of a database"),
        ("redis+sentinel://h:1,h:x/m", "no host:port in place 2"),
        ("redis+cluster://", "no host:port"),
        ("redis+cluster://h:1/3", "names a database"),
        ("redis://h:0", "no host:port"),
        ("redis://h:65536", "no host:port"),
        ("unix://run", "no path of a socket"),
        ("redis://h?sentinel_password=x", "does not begin with rediss+sentinel://"),
        ("redis://h?timeout=3", "has 'timeout' that is none of db, username"),
        ("rediss://h?ssl_cert_reqs=none", "certificates are always checked"),
        ("rediss://h?ssl_certfile=c.pem", "one of a client certificate and its key (--redis-cert, --redis-key)"),
        ("rediss://h?ssl_check_hostname=maybe", "neither true nor false"),
    ],
)
def test_urls_that_cannot_be_used_say_why(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match="--redis-url") as caught:
        connect(url, 1.0)
    assert words in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster", "unix"])
def test_tls_that_is_asked_for_is_never_plain_text(scheme: str, tmp_path: Path) -> None:
    place = f"{scheme}://:secret@host:1/{'main' if 'sentinel' in scheme else '0'}"
    place = f"unix://{tmp_path}" if scheme == "unix" else place
    remedy = "never encrypted" if scheme == "unix" else "begin it with rediss"
    asked = {"ssl=true": remedy, "ssl=": remedy, "ssl=True&db=1": "by `ssl`"}
    asked |= {"ssl_ca_certs=ca.pem": "--redis-ca", "ssl_keyfile=k": "--redis-key"}
    for option, words in asked.items():
        with pytest.raises(ConfigurationError) as caught:
            connect(f"{place}?{option}", 1.0)
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="--redis-ca"):
        completed_url(place, {"ssl_ca_certs": "ca.pem"})


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    for option, changed in (
        ("--redis-ca: .*missing.pem: No such file", {"ssl_ca_certs": tmp_path / "missing.pem"}),
        ("--redis-ca: .*key.pem is no PEM file", {"ssl_ca_certs": security.key}),
        ("--redis-cert: .*cert.pem is no PEM file.* does not fit --redis-key", {"ssl_keyfile": security.ca}),
    ):
        with pytest.raises(ConfigurationError, match=option):
            connect(security.url("rediss", "h:1", **changed), 1.0)


def test_connections_share_a_context_until_a_file_changes(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    tls = RedisTls(str(security.ca), str(security.cert), str(security.key))
    first = secured_context(tls)
    assert secured_context(replace(tls)) is first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert not secured_context(replace(tls, check_names=False)).check_hostname
    assert len(first.get_ca_certs()) == 1, "the system's authorities are not trusted beside one that is given"
    stamp = security.ca.stat().st_mtime_ns + 1
    os.utime(security.ca, ns=(stamp, stamp))
    assert secured_context(tls) is not first


@pytest.mark.parametrize("scheme", sorted({*SCHEMES} - {"unix"}))
def test_the_environment_completes_a_url(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_sentinel, is_secure = "sentinel" in scheme, scheme.startswith("rediss")
    bare = f"{scheme}://h:1{'/m' if is_sentinel else ''}"
    for option, name in ENVIRONMENT.items():
        if is_secure or not option.startswith("ssl"):
            monkeypatch.setenv(name, f"{option}/{ODD}")
    whole = read_url(whole_url(bare, Path("own.pem") if is_secure else None, None, None))
    assert (whole.login.username, whole.login.password) == (f"username/{ODD}", f"password/{ODD}")
    own = f"sentinel_password/{ODD}" if is_sentinel else ""
    assert whole.sentinel_login.password == own
    if is_secure:
        assert whole.tls is not None
        assert (whole.tls.ca, whole.tls.key) == ("own.pem", f"ssl_keyfile/{ODD}")
    again = completed_url(whole_url(bare, None, None, None), {"password": "other"})
    assert read_url(again).login.password == f"password/{ODD}", "what a URL has is not replaced"
    assert "SPARSITY_REDIS_URL" not in os.environ
