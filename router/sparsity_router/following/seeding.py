"""Writes the shipped policies that a store never had."""

from __future__ import annotations

import asyncio
import logging

from sparsity_policies.documents.shipped import shipped_policies
from sparsity_policies.storage.store import PolicyStore
from sparsity_policies.threads import BUILDS
from sparsity_rpc.errors import StoreError

log = logging.getLogger("sparsity.router")
_SEED_SECONDS = 5.0


async def seed(store: PolicyStore, band_set: str) -> None:
    """Writes them once.

    Raises:
        StoreError: when the store does not take them.
    """
    added = await store.seed(await BUILDS.run(shipped_policies, band_set))
    log.info("policies: %d shipped ones added", len(added))


async def keep_seeding(store: PolicyStore, band_set: str) -> None:
    """Seeds again until the store took it, which may have been away at the start."""
    while True:
        try:
            await seed(store, band_set)
            break
        except StoreError:
            await asyncio.sleep(_SEED_SECONDS)
    await asyncio.Event().wait()
