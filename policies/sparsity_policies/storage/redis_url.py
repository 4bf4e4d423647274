"""The URL of a policy store: one server, Sentinel or Cluster, with TLS or without, and who logs in.

    redis://host:port/db              rediss://             one server
    redis+sentinel://host:port,host:port/master/db    rediss+sentinel://   Sentinels, and the master that they name
    redis+cluster://host:port,host:port               rediss+cluster://    nodes of a Cluster
    unix://path                                             one server's socket

All but `unix` take `user:password@`, up to the last `@` before any `?`. Nothing here ever shows what a URL may hide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from sparsity_rpc.errors import ConfigurationError

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
OPTIONS = (
    "db",
    "username",
    "password",
    "sentinel_username",
    "sentinel_password",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
)
# Where each option of a URL is looked for when the URL has it not: passwords stay out of it and of the process list.
ENVIRONMENT = {
    "username": "SPARSITY_REDIS_USERNAME",
    "password": "SPARSITY_REDIS_PASSWORD",
    "sentinel_username": "SPARSITY_REDIS_SENTINEL_USERNAME",
    "sentinel_password": "SPARSITY_REDIS_SENTINEL_PASSWORD",
    "ssl_ca_certs": "SPARSITY_REDIS_CA",
    "ssl_certfile": "SPARSITY_REDIS_CERT",
    "ssl_keyfile": "SPARSITY_REDIS_KEY",
}
# What the command line calls them.
FILES = {"ssl_ca_certs": "--redis-ca", "ssl_certfile": "--redis-cert", "ssl_keyfile": "--redis-key"}
_PORT, _SENTINEL_PORT = 6379, 26379
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Login:
    """A user and its password; without a user it is the server's default one."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RedisTls:
    """What is trusted of servers, and shown to them.

    Attributes:
        ca: PEM file of authorities; empty takes the system's.
        cert: PEM file of the client's certificate chain, where servers demand one.
        key: its private key.
        check_names: whether certificates must name the host, also one that a Sentinel or a Cluster node told.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    check_names: bool = True


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that was read.

    Attributes:
        kind: `single`, `sentinel`, `cluster` or `unix`.
        hosts: names or addresses, and ports.
        path: of the socket.
        master: the name that Sentinels know the server by.
        database: number of the database.
        login: at the servers.
        sentinel_login: at the Sentinels, which know no users of the servers.
        tls: None is plain text.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    master: str = ""
    database: int = 0
    login: Login = Login()
    sentinel_login: Login = Login()
    tls: RedisTls | None = None

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.path}"
        scheme = ("rediss" if self.tls else "redis") + (f"+{self.kind}" if self.kind != "single" else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        place = {"single": f"/{self.database}", "sentinel": f"/{self.master}/{self.database}"}.get(self.kind, "")
        return f"{scheme}://{hosts}{place}"


def read_url(url: str) -> RedisUrl:
    """Reads a URL.

    Raises:
        ConfigurationError: saying what is wrong with it, and nothing that it hides.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise _refused(f"must begin with one of {', '.join(f'{known}://' for known in SCHEMES)}")
    place, _, query = rest.partition("?")
    options = _options(query, scheme)
    base, _, kind = scheme.partition("+")
    tls = _tls(options, scheme) if base == "rediss" else None
    if tls is None and (asked := sorted(name for name in options if name.startswith("ssl_"))):
        option = FILES.get(asked[0], asked[0])
        raise _refused(f"goes with {option}, but begins with {scheme}://, which is plain text; {_begin_with(scheme)}")
    if kind != "sentinel" and any(name.startswith("sentinel_") for name in options):
        raise _refused("has a password or a user of Sentinels, but does not begin with rediss+sentinel://")
    login, where = Login(), place
    if scheme != "unix":
        user, _, where = place.rpartition("@")
        name, _, password = user.partition(":")
        login = Login(unquote(name), unquote(password))
    login = Login(login.username or options.get("username", ""), login.password or options.get("password", ""))
    if scheme == "unix":
        if not where.startswith("/"):
            raise _refused("has no path of a socket; write unix:///path")
        return RedisUrl("unix", path=where, database=_database(options.get("db", "0")), login=login)
    names, _, path = where.partition("/")
    kind = kind or "single"
    hosts = _hosts(names, _SENTINEL_PORT if kind == "sentinel" else _PORT, kind)
    master, database = _path(path, kind)
    own = Login(options.get("sentinel_username", ""), options.get("sentinel_password", ""))
    database = _database(options["db"]) if "db" in options else database
    return RedisUrl(kind, hosts, "", master, database, login, own, tls)


def completed_url(url: str, given: Mapping[str, str]) -> str:
    """``url`` with options that it has not itself, by the names of OPTIONS; empty ones count as not given.

    Raises:
        ConfigurationError: when the URL cannot be used, alone or with them.
    """
    own = read_url(url)
    has = {"username": own.login.username, "password": own.login.password}
    has |= {"sentinel_username": own.sentinel_login.username, "sentinel_password": own.sentinel_login.password}
    if own.tls:
        has |= {"ssl_ca_certs": own.tls.ca, "ssl_certfile": own.tls.cert, "ssl_keyfile": own.tls.key}
    if own.kind != "sentinel":
        given = {name: value for name, value in given.items() if not name.startswith("sentinel_")}
    missing = [f"{name}={quote(value, safe='')}" for name, value in given.items() if value and not has.get(name)]
    made = url + ("&" if "?" in url else "?") * bool(missing) + "&".join(missing)
    read_url(made)
    return made


def whole_url(
    url: str, ca: Path | None, cert: Path | None, key: Path | None, environment: Mapping[str, str] | None = None
) -> str:
    """``url`` with these files, and with what it lacks from the environment, without one the process's.

    Raises:
        ConfigurationError: when the URL cannot be used, alone or with them.
    """
    variables = os.environ if environment is None else environment
    given = {option: variables.get(name, "") for option, name in ENVIRONMENT.items()}
    files = zip(FILES, (ca, cert, key), strict=True)
    return completed_url(url, given | {name: str(file) for name, file in files if file})


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    try:
        return str(read_url(url))
    except ConfigurationError:
        return "a URL that cannot be read, and is not shown"


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError(f"--redis-url: {problem}")


def _begin_with(scheme: str) -> str:
    if scheme == "unix":
        return "a socket is never encrypted: leave it out"
    return f"begin it with {scheme.replace('redis', 'rediss', 1)}://"


def _options(query: str, scheme: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl":
            # What is not heeded would be a connection in plain text.
            remedy = "its beginning says so already" if scheme.startswith("rediss") else _begin_with(scheme)
            raise _refused(f"asks for TLS by `ssl`; {remedy}")
        if name == "ssl_cert_reqs":
            raise _refused("has ssl_cert_reqs; certificates are always checked: give their authority by ssl_ca_certs")
        if name not in OPTIONS:
            # After a password with a question mark this would be the rest of it.
            shown = repr(name) if "@" not in query and name.isidentifier() else "an option"
            raise _refused(f"has {shown} that is none of {', '.join(OPTIONS)}; a `?` in a password is written %3F")
        options[name] = value
    return options


def _tls(options: Mapping[str, str], scheme: str) -> RedisTls:
    check = options.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise _refused("has ssl_check_hostname, which is neither true nor false")
    ca, cert, key = (options.get(name, "") for name in FILES)
    if bool(cert) is not bool(key):
        raise _refused("has one of a client certificate and its key (--redis-cert, --redis-key): give both")
    return RedisTls(ca, cert, key, check == "true")


def _hosts(names: str, port: int, kind: str) -> tuple[tuple[str, int], ...]:
    entries = names.split(",") if kind != "single" else [names or "localhost"]
    found = []
    for number, entry in enumerate(entries, start=1):
        match = _HOST.fullmatch(entry)
        digits = int(match[2] or port) if match else 0
        if match is None or not 0 < digits < 65536:
            which = f" in place {number}" if len(entries) > 1 else ""
            raise _refused(f"has no host:port{which}; an IPv6 address stands in brackets: [::1]:{port}")
        found.append((match[1].strip("[]"), digits))
    return tuple(found)


def _path(path: str, kind: str) -> tuple[str, int]:
    """The master's name and the number of the database."""
    path = path.strip("/")
    if kind != "sentinel":
        if kind == "cluster" and path not in ("", "0"):
            raise _refused("names a database; a Cluster has none but 0")
        return "", _database(path or "0")
    name, _, database = path.partition("/")
    if not name:
        raise _refused("names no master; write redis+sentinel://host:port/master")
    return unquote(name), _database(database or "0")


def _database(text: str) -> int:
    if not text.isdecimal():
        raise _refused("has no number of a database where one belongs")
    return int(text)
