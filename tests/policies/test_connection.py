"""URLs of stores: what is in them, what may be shown of them, and what is refused."""

from __future__ import annotations

import pytest
from sparsity_policies.storage.connection import connect, quoted, without_credentials
from sparsity_rpc.errors import ConfigurationError

ODD = "p/w@:#%2x"


@pytest.mark.parametrize("written", [ODD, "p%2Fw%40%3A%23%252x"])
async def test_a_password_ends_at_the_last_at_sign(written: str) -> None:
    client = connect(f"redis://ann:{written}@store.example:7001/2", 1.0)
    options = client.connection_pool.connection_kwargs
    found = (options["host"], options["port"], options["db"], options["username"], options["password"])
    assert found == ("store.example", 7001, 2, "ann", ODD)
    sentinel = connect(f"redis+sentinel://:{written}@one.example:1,two.example:2/main", 1.0)
    assert sentinel.connection_pool.connection_kwargs["password"] == ODD
    hosts = [
        each.connection_pool.connection_kwargs["host"] for each in sentinel.connection_pool.sentinel_manager.sentinels
    ]
    assert hosts == ["one.example", "two.example"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p/w@host:1/0", "redis://host:1/0"),
        ("redis://ann:p@w@host:1/0", "redis://host:1/0"),
        ("redis://host:1/0?password=secret", "redis://host:1/0"),
        ("redis+cluster://u:p/w@a:1,b:2", "redis+cluster://a:1,b:2"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
    ],
)
def test_what_is_shown_holds_no_password(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_what_has_no_credentials_is_left_alone() -> None:
    for url in ("redis://host:1/0", "unix:///run/a@b.sock", "redis://host:1/0?x=a@b"):
        assert quoted(url) == url
    assert quoted("redis://:pw@host:1") == "redis://:pw@host:1"


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
def test_tls_that_is_asked_for_by_an_option_is_no_plain_text(scheme: str) -> None:
    for option in ("ssl=true", "ssl=", "ssl=True&x=1"):
        with pytest.raises(ConfigurationError, match=r"begin it with rediss://") as caught:
            connect(f"{scheme}://:secret@host:1/main?{option}", 1.0)
        assert "secret" not in str(caught.value)
