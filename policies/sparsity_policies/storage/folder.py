"""Policies from a folder of YAML files, such as a checkout or a mounted ConfigMap, in the place of a store.

The folder is the source of truth: nothing is written to it. A file that cannot be read is told, and its domain held at
its last good version by the router. The revision counts the changes that this process saw; replicas compare content
hashes. A store beside it carries overrides, and is compared with the folder: what differs has drifted. While that
store is away the files are followed on, with the overrides as last known, which are as old as its last word.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, StoreError

from sparsity_policies.documents.confined import NoProcessError
from sparsity_policies.documents.document import MAX_BYTES, body_of
from sparsity_policies.documents.envelope import seconds_since
from sparsity_policies.documents.yamlfile import load_yaml
from sparsity_policies.model import Override, Policy, StoredPolicy
from sparsity_policies.storage.contents import Asked, Contents, Cursor, Delta, Word
from sparsity_policies.storage.store import PolicyStore
from sparsity_policies.threads import BUILDS

log = logging.getLogger("sparsity.policies.folder")
_POLL_SECONDS = 0.5
# Twice the characters that a text of a policy may have.
_MOST_BYTES = 4 * MAX_BYTES


class PolicyFolder:
    """The `*.yaml` files of one folder, one policy each, with the overrides of ``store`` where there is one.

    Args:
        folder: the source of truth.
        store: carries overrides, and is compared with the folder.
        load: reads and checks a text, told whose.

    Raises:
        ConfigurationError: when there is no such folder.
    """

    def __init__(
        self, folder: Path, store: PolicyStore | None = None, load: Callable[[str, str], Policy] = load_yaml
    ) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"--policy-dir: {folder} is no folder")
        self._folder = folder
        self._store = store
        self._load = load
        self._cursor = Cursor(0, "", "")
        self._opened: dict[str, StoredPolicy] = {}
        self._names: dict[str, str] = {}
        self._read_before: dict[str, tuple[bytes, Policy | str]] = {}
        self._overrides: list[Override] = []
        self._overrides_at, self._overrides_event = 0, ""
        self._drifted: tuple[str, ...] = ()
        self._store_head: str | None = None
        # What the store's clock is ahead of the monotonic one: this machine's other clock may be set meanwhile.
        self._clock: float | None = None
        # When the overrides were last known to be the store's, by the monotonic clock; always where there is none.
        self._store_read_at = float("-inf") if store is not None else float("inf")

    def resume(self, saved: Contents, age: float) -> bool:
        """Goes on from before a restart, until the store beside it is read.

        Args:
            saved: what was known then: its overrides, clock and revision are taken.
            age: seconds since it was current.
        """
        if self._store is not None:
            self._cursor = Cursor(saved.revision, "", "")
            self._take(saved, time.monotonic() - age)
        return True

    def _take(self, told: Contents, read_at: float) -> None:
        """Keeps what the store says of overrides, and of the time."""
        self._overrides = told.overrides
        self._overrides_at, self._overrides_event = told.overrides_at, told.overrides_event
        self._clock = told.clock_offset + time.time() - time.monotonic()
        self._store_read_at = read_at

    @property
    def _clock_offset(self) -> float:
        return 0.0 if self._clock is None else self._clock + time.monotonic() - time.time()

    async def read(self) -> Contents:
        """Every file, and the overrides as they were last known.

        Raises:
            StoreError: when the folder cannot be read, or nothing is known of the overrides of the store.
        """
        texts = await BUILDS.run(self._texts)
        found, rejected = await BUILDS.run(self._open, texts)
        await self._consult(found)
        head = self._head(texts)
        if head != self._cursor.head:
            self._cursor = Cursor(self._cursor.revision + 1, head, "")
        about = (self._clock_offset, self._drifted, self._overrides_at, self._overrides_event, self._store_read_at)
        return Contents(self._cursor, list(found.values()), self._overrides, rejected, *about)

    async def delta(self, cursor: Cursor) -> Delta | None:
        """Nothing when nothing changed; else only a whole read can tell."""
        if await self._changed(cursor):
            return None
        about = (self._clock_offset, self._overrides_at, self._overrides_event, self._store_read_at)
        return Delta(cursor, {}, self._overrides, {}, *about)

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        """Returns at a change after ``cursor``, or after ``seconds``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            # First: what a store says to have changed, and cannot be read, is there again at once.
            await asyncio.sleep(min(_POLL_SECONDS, left))
            if await self._changed(cursor):
                return

    async def word_on(self, asked: Asked) -> Word:
        """As the store beside it has it."""
        return await self._store.word_on(asked) if self._store is not None else Word(None, is_later=False)

    async def _changed(self, cursor: Cursor) -> bool:
        if self._store is not None:
            asked = time.monotonic()
            try:
                if await self._store.head() != self._store_head:
                    return True
                self._store_read_at = asked
            except StoreError as error:
                log.warning("%s; its overrides are kept as they were", error)
        return self._head(await BUILDS.run(self._texts)) != cursor.head

    async def _consult(self, found: dict[str, StoredPolicy]) -> None:
        """Takes overrides, drift and clock from the store."""
        if self._store is None:
            return
        asked = time.monotonic()
        try:
            contents = await self._store.read()
        except StoreError as error:
            if self._store_read_at == float("-inf"):
                raise
            log.warning("%s; its overrides are kept as they were", error)
            return
        self._store_head = contents.cursor.head
        self._take(contents, asked)
        there = {stored.policy.domain: body_of(stored.policy) for stored in contents.policies}
        here = {domain: body_of(stored.policy) for domain, stored in found.items()}
        self._drifted = tuple(sorted(domain for domain in there if there[domain] != here.get(domain)))

    def _head(self, texts: dict[str, bytes | str]) -> str:
        digest = hashlib.sha256((self._store_head or "").encode())
        for name, text in texts.items():
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + _digest(text))
        return digest.hexdigest()[:16]

    def _texts(self) -> dict[str, bytes | str]:
        """Every file's contents, or in words what keeps them from being read."""
        try:
            # A mounted ConfigMap has hidden folders of its own beside the links.
            files = [path for path in sorted(self._folder.iterdir()) if path.suffix == ".yaml" and path.name[0] != "."]
        except OSError as error:
            raise StoreError(f"--policy-dir: {error}") from error
        return {path.name: _contents(path) for path in files}

    def _read(self, name: str, data: bytes | str) -> Policy | str:
        """The policy in a file, or what is wrong with it; what did not change is not read again."""
        if isinstance(data, str):
            return data
        digest = _digest(data)
        known = self._read_before.get(name)
        if known is not None and known[0] == digest:
            return known[1]
        try:
            found: Policy | str = self._load(data.decode(), _told(name))
        except (InvalidRequestError, ValueError) as error:
            if isinstance(error.__cause__, NoProcessError):
                return str(error)
            found = str(error)
        self._read_before[name] = digest, found
        return found

    def _open(self, texts: dict[str, bytes | str]) -> tuple[dict[str, StoredPolicy], dict[str, str]]:
        found: dict[str, StoredPolicy] = {}
        rejected: dict[str, str] = {}
        self._read_before = {name: known for name, known in self._read_before.items() if name in texts}
        for name, data in texts.items():
            # A file keeps the domain it last held, so that a broken edit is told of the right one.
            domain = self._names.get(name, _told(name).removesuffix(".yaml"))
            policy = self._read(name, data)
            if isinstance(policy, str):
                rejected[domain] = policy
                continue
            self._names[name] = policy.domain
            if policy.domain in found:
                rejected[policy.domain] = f"stands in {found[policy.domain].actor} and in {_told(name)}; keep one"
                continue
            etag = _digest(data).hex()[:16]
            known = self._opened.get(policy.domain)
            if known is None or known.etag != etag:
                updated = _modified(self._folder / name)
                known = StoredPolicy(policy, etag, self._cursor.revision + 1, updated, _told(name), "policy folder")
            found[policy.domain] = self._opened[policy.domain] = known
        return {domain: stored for domain, stored in found.items() if domain not in rejected}, rejected


def _contents(path: Path) -> bytes | str:
    try:
        # Neither a folder nor a pipe, which would be waited for.
        if not path.is_file():
            return "is no file"
        if (size := path.stat().st_size) > _MOST_BYTES:
            return f"is {size} bytes; a file of a policy has {_MOST_BYTES} at most"
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _told(name: str) -> str:
    """A file's name as text, whatever bytes it is of."""
    return name.encode("utf-8", "backslashreplace").decode()


def _modified(path: Path) -> float:
    try:
        return seconds_since(path.stat().st_mtime)
    except (OSError, ValueError):  # gone since it was read, or of a time that cannot be told
        return time.time()


def _digest(data: bytes | str) -> bytes:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).digest()
