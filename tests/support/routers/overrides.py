"""Reads of a store, as a router takes them up."""

from __future__ import annotations

from collections.abc import Iterable

from sparsity_policies.model import Override
from sparsity_policies.storage.contents import Word
from sparsity_router.following.known import Read
from sparsity_router.following.overrides import Overrides

ENDED, LOST = Word(None, is_later=True), Word(None, is_later=False)


def read(
    overrides: Overrides,
    there: Iterable[Override],
    revision: int,
    word: Word | None = None,
    began: float = float("-inf"),
) -> None:
    """Takes up that a store held these at a revision; its word is asked for whatever is doubtful."""
    held = Read(list(there), revision, "", began)
    overrides.stored(held, dict.fromkeys(overrides._known.doubtful(held, overrides._now()), word))
