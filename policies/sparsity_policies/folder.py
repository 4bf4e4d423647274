"""Policies from a folder of YAML files, such as a checkout or a mounted ConfigMap, in the place of a store.

The folder is the source of truth: nothing is written to it. A file that cannot be read is told, and its domain held at
its last good version by the router. The revision counts the changes that this process saw; replicas compare content
hashes. A store beside it carries overrides, and is compared with the folder: what differs has drifted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from pathlib import Path

from sparsity.errors import ConfigurationError, InvalidRequestError, StoreError

from sparsity_policies.contents import Contents, Cursor, Delta
from sparsity_policies.document import encode
from sparsity_policies.model import Override, StoredPolicy
from sparsity_policies.store import PolicyStore
from sparsity_policies.yamlfile import load_yaml

log = logging.getLogger("sparsity.policies.folder")
_POLL_SECONDS = 0.5


class PolicyFolder:
    """The `*.yaml` files of one folder, one policy each, with the overrides of ``store`` where there is one.

    Raises:
        ConfigurationError: when there is no such folder.
    """

    def __init__(self, folder: Path, store: PolicyStore | None = None) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"--policy-dir: {folder} is no folder")
        self._folder = folder
        self._store = store
        self._cursor = Cursor(0, "", "")
        self._opened: dict[str, StoredPolicy] = {}
        self._names: dict[str, str] = {}
        self._overrides: list[Override] = []
        self._overrides_at = 0
        self._drifted: tuple[str, ...] = ()
        self._store_head = ""
        self._clock_offset = 0.0

    async def read(self) -> Contents:
        """Every file, and the overrides as they were last known."""
        texts = await asyncio.to_thread(self._texts)
        found, rejected = await asyncio.to_thread(self._open, texts)
        await self._consult(found)
        head = self._head(texts)
        if head != self._cursor.head:
            self._cursor = Cursor(self._cursor.revision + 1, head, "")
        about = (self._clock_offset, self._drifted, self._overrides_at)
        return Contents(self._cursor, list(found.values()), self._overrides, rejected, *about)

    async def delta(self, cursor: Cursor) -> Delta | None:
        """Nothing when nothing changed; else only a whole read can tell."""
        if await self._changed(cursor):
            return None
        return Delta(cursor, {}, self._overrides, {}, self._clock_offset, self._overrides_at)

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        """Returns at a change after ``cursor``, or after ``seconds``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if await self._changed(cursor):
                return
            await asyncio.sleep(min(_POLL_SECONDS, left))

    async def _changed(self, cursor: Cursor) -> bool:
        if self._store is not None:
            try:
                self._store_head = await self._store.head()
            except StoreError as error:
                log.warning("%s; its overrides are kept as they were", error)
        return self._head(await asyncio.to_thread(self._texts)) != cursor.head

    async def _consult(self, found: dict[str, StoredPolicy]) -> None:
        """Takes overrides, drift and clock from the store."""
        if self._store is None:
            return
        try:
            contents = await self._store.read()
        except StoreError as error:
            log.warning("%s; its overrides are kept as they were", error)
            return
        self._clock_offset = contents.clock_offset
        self._store_head = contents.cursor.head
        self._overrides, self._overrides_at = contents.overrides, contents.overrides_at
        there = {stored.policy.domain: encode(stored.policy) for stored in contents.policies}
        here = {domain: encode(stored.policy) for domain, stored in found.items()}
        self._drifted = tuple(sorted(domain for domain in there if there[domain] != here.get(domain)))

    def _head(self, texts: dict[str, bytes]) -> str:
        digest = hashlib.sha256(self._store_head.encode())
        for name, text in texts.items():
            digest.update(name.encode() + b"\0" + hashlib.sha256(text).digest())
        return digest.hexdigest()[:16]

    def _texts(self) -> dict[str, bytes]:
        try:
            # A mounted ConfigMap has hidden folders of its own beside the links.
            files = [path for path in sorted(self._folder.glob("*.yaml")) if not path.name.startswith(".")]
            return {path.name: path.read_bytes() for path in files}
        except OSError as error:
            raise StoreError(f"--policy-dir: {error}") from error

    def _open(self, texts: dict[str, bytes]) -> tuple[dict[str, StoredPolicy], dict[str, str]]:
        found: dict[str, StoredPolicy] = {}
        rejected: dict[str, str] = {}
        for name, data in texts.items():
            # A file keeps the domain it last held, so that a broken edit is told of the right one.
            domain = self._names.get(name, name.removesuffix(".yaml"))
            try:
                policy = load_yaml(data.decode(), name)
            except (InvalidRequestError, UnicodeDecodeError) as error:
                rejected[domain] = str(error)
                continue
            self._names[name] = policy.domain
            if policy.domain in found:
                rejected[policy.domain] = f"stands in {found[policy.domain].actor} and in {name}; keep one"
                continue
            etag = hashlib.sha256(data).hexdigest()[:16]
            known = self._opened.get(policy.domain)
            if known is None or known.etag != etag:
                updated = (self._folder / name).stat().st_mtime
                known = StoredPolicy(policy, etag, self._cursor.revision + 1, updated, name, "policy folder")
            found[policy.domain] = self._opened[policy.domain] = known
        return {domain: stored for domain, stored in found.items() if domain not in rejected}, rejected
