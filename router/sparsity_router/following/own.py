"""An override that was set on a router, beside what the store has under its id."""

from __future__ import annotations

import math
from typing import NamedTuple

from sparsity_policies.model import Override


class Own(NamedTuple):
    """An override that was set here.

    Attributes:
        override: as it was set.
        since: when, seconds since the epoch by the source's clock.
        read_at: revision of the source that was read by then.
    """

    override: Override
    since: float
    read_at: int = 0

    def is_held(self, there: Override | None) -> bool:
        """Whether the store has one that caps as much, and that was not known here when this one was set."""
        return there is not None and there.revision > self.read_at and caps(there, self.override)


def caps(one: Override, another: Override) -> bool:
    """Whether one caps whatever another does, as much and as long."""
    ends, wanted = (math.inf if each.expire_time is None else each.expire_time for each in (one, another))
    place = (one.scope, one.target) == (another.scope, another.target)
    return place and one.max_tier <= another.max_tier and ends >= wanted
