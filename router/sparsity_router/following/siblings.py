"""Overrides among the router processes that share a port: what is set at one acts at all, store or not.

A folder holds one small file an event, named by time and process. Who starts late reads them all, so that a process
that was restarted during an outage of the store knows the kill switch too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

from sparsity_policies.documents.envelope import UNREADABLE, open_overrides, seal_override

from sparsity_router.following.overrides import Change, Overrides

log = logging.getLogger("sparsity.router.siblings")
_POLL_SECONDS = 0.05


class Siblings:
    """Passes on what happens to one process's overrides, and takes up what happens to the others'."""

    def __init__(self, folder: Path, overrides: Overrides) -> None:
        self._folder = folder
        self._overrides = overrides
        self._seen: set[str] = set()
        self._count = 0
        overrides.tell = self._tell

    def _tell(self, change: Change) -> None:
        sealed = seal_override(change.override) if change.override else None
        content = {"id": change.id, "override": sealed, "revision": change.revision}
        self._count += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._count}.json"
        scratch = self._folder / f"{name}.part"
        try:
            scratch.write_text(json.dumps(content), encoding="utf-8")
            self._seen.add(name)
            os.replace(scratch, self._folder / name)
        except OSError as error:
            log.error("the other router processes of this machine are not told of an override: %s", error)

    async def run(self) -> None:
        """Takes up what the others tell, for as long as it runs."""
        while True:
            self.look()
            await asyncio.sleep(_POLL_SECONDS)

    def look(self) -> None:
        """Takes up what is new."""
        names = sorted(entry.name for entry in os.scandir(self._folder) if entry.name.endswith(".json"))
        for name in names:
            if name in self._seen:
                continue
            self._seen.add(name)
            try:
                told = json.loads((self._folder / name).read_text(encoding="utf-8"))
                name, sealed, revision = str(told["id"]), told["override"], int(told["revision"])
                found, broken = open_overrides({name: sealed} if sealed else {})
                self._overrides.apply(Change(name, found[0] if found else None, revision))
                if broken:
                    raise ValueError(broken)
            except (OSError, *UNREADABLE) as error:
                log.error("%s tells of an override that cannot be read: %s", name, error)
