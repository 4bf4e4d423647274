"""Real servers that demand TLS, certificates of clients and passwords: one, under Sentinel, and a Cluster.

The server is Debian's, or one on the PATH: where it cannot be had, these tests fail.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.model import Override, Scope
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_router.callers.limits import TenantLimits
from sparsity_router.decisions.sessions import Sessions
from sparsity_rpc.errors import ConflictError, RateLimitError, StoreError
from support.stores.redis_security import PASSWORD, SENTINEL_PASSWORD, Security
from support.stores.redis_server import RedisServer, cluster, sentinel

POLICIES = shipped_policies("small-context")
KINDS = ("rediss", "rediss+sentinel", "rediss+cluster")
WRONG = "not/the@password"


@contextmanager
def _single(folder: Path, security: Security) -> Iterator[str]:
    with RedisServer(folder, security=security) as server:
        yield server.url


@contextmanager
def _sentinel(folder: Path, security: Security) -> Iterator[str]:
    with sentinel(folder, security) as (url, _, _):
        yield url


SERVERS: dict[str, Callable[[Path, Security], Any]] = dict(zip(KINDS, (_single, _sentinel, cluster), strict=True))


class Place:
    """Servers of one kind, and how URLs to them are written."""

    def __init__(self, kind: str, security: Security, url: str) -> None:
        self.kind, self.security, self.url = kind, security, url
        self.where, _, self.path = url.partition("?")[0].rpartition("@")[2].partition("/")

    def written(self, security: Security | None = None, **changed: object) -> str:
        path = f"/{self.path}" if self.path else ""
        return (security or self.security).url(self.kind, self.where, path, **changed)


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("secured")
    security = Security.make(folder)
    with SERVERS[request.param](folder, security) as url:
        yield Place(request.param, security, url)


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Connections say goodbye to their server (TLS) before they are gone, also such as failed."""
    yield
    await asyncio.sleep(0.1)


async def failure(url: str) -> StoreError:
    store = PolicyStore(url, timeout=1.0)
    with pytest.raises(StoreError) as caught:
        await store.revision_number()
    await store.close()
    return caught.value


async def test_everything_works_behind_tls_and_passwords(place: Place, tmp_path: Path) -> None:
    store = PolicyStore(place.url)
    await store.seed(POLICIES)
    with pytest.raises(ConflictError):
        await store.put(POLICIES[0], etag="old", actor="a", reason="r")
    cursor = (await store.read()).cursor
    waiting = asyncio.create_task(store.wait(cursor, 5.0))
    await store.put_override(Override("k", Scope.GLOBAL, reason="r"))
    await asyncio.wait_for(waiting, 2.0)
    delta = await store.delta(cursor)
    assert delta is not None
    assert [override.id for override in delta.overrides] == ["k"]
    assert [replayed async for replayed in DecisionLog(store.redis).replay(60)] == []
    assert (await Sessions(store.redis).tier("t", "s")).problem == ""
    (tmp_path / "limits.yaml").write_text("default: {requests: 3/minute}")
    limits = TenantLimits.load(tmp_path / "limits.yaml", place.url)
    other = TenantLimits.load(tmp_path / "limits.yaml", place.url)
    assert limits is not None
    assert other is not None

    async def let_in(tenant: str) -> int:
        """How many of four requests are, by two routers in turn."""
        passed = 0
        with suppress(RateLimitError):
            for each in (limits, other, limits, other):
                await each.request(tenant)
                passed += 1
        return passed

    # A router waits for no handshake, and counts alone until it is through; then they count together.
    for number in range(20):
        if await let_in(f"tenant-{number}") == 3:
            break
        await asyncio.sleep(0.5)
    else:
        pytest.fail("they never counted together")
    for each in (limits, other, store):
        await each.close()


FAULTS: dict[str, tuple[Callable[[Place], str], tuple[str, ...]]] = {
    "another authority": (lambda at: at.written(ssl_ca_certs=at.security.other_ca), ("give that by --redis-ca",)),
    "no authority": (lambda at: at.written(ssl_ca_certs=None), ("give that by --redis-ca",)),
    "no certificate": (
        lambda at: at.written(ssl_certfile=None, ssl_keyfile=None),
        ("demands a certificate of clients", "give --redis-cert and --redis-key"),
    ),
    "a wrong password": (
        lambda at: at.written(at.security.with_passwords(WRONG)),
        ("invalid username-password pair", "give the right SPARSITY_REDIS_PASSWORD"),
    ),
    "no password": (
        lambda at: at.written(at.security.with_passwords("")),
        ("Authentication required.", "give the right SPARSITY_REDIS_PASSWORD"),
    ),
    "plain text": (
        lambda at: at.url.partition("?")[0].replace("rediss", "redis"),
        ("begin the URL with rediss instead of redis",),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_wrong_option_is_named_with_its_remedy(place: Place, fault: str) -> None:
    written, words = FAULTS[fault]
    error = await failure(written(place))
    for part in words:
        assert part in str(error)
    assert "\n" not in str(error)
    shown = "".join(traceback.format_exception(error))
    for secret in (PASSWORD, SENTINEL_PASSWORD, WRONG):
        assert secret not in shown


async def test_sentinels_demand_their_own_password(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    with sentinel(tmp_path, security) as (url, _, _):
        where = url.partition("?")[0].rpartition("@")[2].partition("/")[0]
        wrong = security.with_passwords(PASSWORD, WRONG)
        for one, changed in ((wrong, {}), (security, {"sentinel_password": None})):
            error = await failure(one.url("rediss+sentinel", where, "/m", **changed))
            assert "a Sentinel has a login of its own: give SPARSITY_REDIS_SENTINEL_PASSWORD" in str(error)
            assert WRONG not in str(error)
        error = await failure(security.url("rediss+sentinel", where, "/other"))
        assert "no master 'other'" in str(error)
        assert "correct its name" in str(error)
        # The first of several is down: the next one is asked.
        store = PolicyStore(security.url("rediss+sentinel", f"127.0.0.1:1,{where}", "/m"), timeout=1.0)
        assert await store.revision_number() == 0
        await store.close()


async def test_tls_to_a_server_of_plain_text_says_so(tmp_path: Path) -> None:
    security = Security.make(tmp_path)
    with RedisServer(tmp_path) as server:
        store = PolicyStore(security.url("rediss", f"127.0.0.1:{server.port}"), timeout=0.3)
        with pytest.raises(StoreError, match="speaks plain text, begin the URL with redis instead of rediss"):
            await store.revision_number()
        await store.close()


async def test_a_certificate_for_another_name_is_refused_unless_told(tmp_path: Path) -> None:
    security = Security.make(tmp_path, names=("store.example",))
    with RedisServer(tmp_path, security=security) as server:
        error = await failure(server.url.replace("&ssl_check_hostname=false", ""))
        assert "the certificate does not name this address: add ssl_check_hostname=false" in str(error)
        store = PolicyStore(security.url("rediss", f"127.0.0.1:{server.port}", ssl_check_hostname="false"))
        assert await store.revision_number() == 0
        await store.close()


async def test_a_cluster_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    """The library's exception of a Cluster stands outside of its own tree."""
    error = await failure("redis+cluster://127.0.0.1:1")
    assert "start it, or correct --redis-url" in str(error)
    store = PolicyStore("redis+cluster://127.0.0.1:1")
    told = await Sessions(store.redis).tier("t", "s")
    assert "cannot be known" in told.problem
    await store.close()


async def test_a_user_with_few_rights_is_enough(tmp_path: Path) -> None:
    """What docs/operations.md says that it needs."""
    rights = ("~{sparsity}*", "~sparsity:*", "+@all", "-@admin", "-@dangerous")
    with RedisServer(tmp_path, "--user", "router", "on", f">{PASSWORD}", *rights) as server:
        url = f"redis://router:{PASSWORD.replace('?', '%3F')}@127.0.0.1:{server.port}"
        store = PolicyStore(url)
        await store.seed(POLICIES)
        cursor = (await store.read()).cursor
        await store.wait(cursor, 0.01)
        assert await store.delta(cursor) is not None
        assert (await store.history("rag")).revisions
        assert (await Sessions(store.redis).tier("t", "s")).problem == ""
        (tmp_path / "limits.yaml").write_text("default: {requests: 3/minute}")
        limits = TenantLimits.load(tmp_path / "limits.yaml", url)
        assert limits is not None
        await limits.request("acme")
        assert [key async for key in store.redis.scan_iter("sparsity:limits*")], "it was counted in the store"
        await limits.close()
        await store.close()
