"""What a source of policies holds, whole or as a change; a router follows any source alike."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from sparsity_policies.model import Override, StoredPolicy


class Cursor(NamedTuple):
    """One state of a source.

    Attributes:
        revision: raised by every write.
        head: changes with every write, even where a failover gave the same revision to another write.
        event: where to go on following.
    """

    revision: int
    head: str
    event: str


class Contents(NamedTuple):
    """Everything at one revision.

    Attributes:
        cursor: of this state.
        policies: the readable ones.
        overrides: the readable ones.
        rejected: what could not be read, by domain or override id.
        clock_offset: what the source's clock is ahead of this machine's, seconds.
        drifted: domains that say something else in a store beside the source.
        overrides_at: revision of the store that the overrides were read at.
        overrides_event: the store's last event by then; empty where that is not known.
        read_at: when the overrides were the store's, where it was not asked just now, on the monotonic clock.
    """

    cursor: Cursor
    policies: list[StoredPolicy]
    overrides: list[Override]
    rejected: dict[str, str]
    clock_offset: float
    drifted: tuple[str, ...] = ()
    overrides_at: int = 0
    overrides_event: str = ""
    read_at: float = math.inf

    @property
    def revision(self) -> int:
        """The source's revision."""
        return self.cursor.revision


class Delta(NamedTuple):
    """What changed since a cursor.

    Attributes:
        cursor: of the state after the change.
        policies: what is there now by changed domain; None where it was deleted.
        overrides: all of them.
        rejected: changed documents and overrides that could not be read.
        clock_offset: what the source's clock is ahead of this machine's, seconds.
        overrides_at, overrides_event, read_at: as of :class:`Contents`.
    """

    cursor: Cursor
    policies: dict[str, StoredPolicy | None]
    overrides: list[Override]
    rejected: dict[str, str]
    clock_offset: float
    overrides_at: int = 0
    overrides_event: str = ""
    read_at: float = math.inf


class Word(NamedTuple):
    """What a source says of an override.

    Attributes:
        override: as it is there now; None where there is none.
        is_later: whether it was set or ended there after what was asked about.
        is_same: whether its last word is the very write that was asked about.
        is_new: whether its last word came after what was known when what was asked about was set.
    """

    override: Override | None
    is_later: bool
    is_same: bool = False
    is_new: bool = False


class Asked(NamedTuple):
    """An override about which a source is asked: one that was set elsewhere, or one that it had (``event`` is given).

    Attributes:
        id: of the override.
        since: when it was set elsewhere, seconds since the epoch by the source's clock.
        revision: of the source that was known then; of the override itself, where the source had it.
        event: of the source, at which it had the override; empty where only its revision tells. None of one that was
            set elsewhere.
        token: of the write by which the source may have been told of it; empty where there was none.
        read_event: of the source, the last that was known at ``since``; empty where only the revision tells. What is
            after it was not known, whatever its number: a store that was emptied numbers anew.
    """

    id: str
    since: float = 0.0
    revision: int = 0
    event: str | None = None
    token: str = ""
    read_event: str = ""


class PolicySource(Protocol):
    """Where a router's policies come from. Every method raises StoreError when the source cannot be read."""

    async def read(self) -> Contents:
        """Everything; what cannot be read is told, not raised."""

    async def delta(self, cursor: Cursor) -> Delta | None:
        """What changed since ``cursor``; None when only a whole read can tell."""

    async def wait(self, cursor: Cursor, seconds: float) -> None:
        """Returns at a change after ``cursor``, or after ``seconds``."""

    async def word_on(self, asked: Asked) -> Word:
        """What it says of an override."""

    def resume(self, saved: Contents, age: float) -> bool:
        """Goes on from what was saved so many seconds ago; whether it can be read now, though its store is away."""
