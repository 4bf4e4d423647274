"""What the hooks keep with each request, and its account on the way out of the scheduler."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Final

from sparsity_worker.keys import MEASURE_KEY, PROBE_KEY, REASONING_KEY, STEPWISE_KEY, TIER_KEY
from sparsity_worker.plugin.accounts.ledger import Inside, Ledger
from sparsity_worker.plugin.accounts.reasoning import Reasoning
from sparsity_worker.plugin.attention import Prompt

_KEPT: Final = "sparsity_followed"


class Followed:
    """What the hooks keep with a request of SGLang's.

    Args:
        req: the request.
        places: of the engine's tiers.
    """

    def __init__(self, req: Any, places: Mapping[str, int]) -> None:
        asked = req.sampling_params.custom_params or {}
        self._req = weakref.ref(req)
        self._reasoning = Reasoning(asked[REASONING_KEY], req.origin_input_ids) if REASONING_KEY in asked else None
        markers = self._reasoning.markers if self._reasoning else None
        self._prompt = Prompt(
            len(req.origin_input_ids), PROBE_KEY in asked, measured=MEASURE_KEY in asked, markers=markers,
            tier=places.get(asked.get(TIER_KEY, ""), 0),
        )  # fmt: skip
        self._stepwise = STEPWISE_KEY in asked

    @classmethod
    def of(cls, req: Any, places: Mapping[str, int]) -> Followed:
        """The one of a request, made when first asked for."""
        found: Followed | None = getattr(req, _KEPT, None)
        if found is None:
            found = cls(req, places)
            setattr(req, _KEPT, found)
        return found

    def prompt(self) -> Prompt:
        """As the tokens that are known by now say."""
        if self._reasoning is None:
            return self._prompt
        return self._prompt._replace(reasoning=self._goes_on())

    def inside(self) -> Inside | None:
        """Which of its decode steps lie in a reasoning span that decodes densely."""
        if self._reasoning is None:
            return None
        self._goes_on()
        return self._reasoning.inside

    @property
    def wanted(self) -> bool:
        """Whether its account is read: when it has ended, or may be ended by the worker at any token."""
        req = self._req()
        return self._stepwise or req is None or req.finished()

    def _goes_on(self) -> bool:
        req = self._req()
        return bool(self._reasoning and req and self._reasoning.goes_on(req.output_ids))


class Packed:
    """A request's account, packed when SGLang pickles it on its way out: by then every token is known.

    Args:
        ledger: that has it.
        rid: the request.
        followed: what is kept of it.
    """

    __slots__ = ("_followed", "_ledger", "_rid", "_steps")

    def __init__(self, ledger: Ledger, rid: str, followed: Followed | None) -> None:
        self._ledger, self._rid, self._followed = ledger, rid, followed
        # With overlapping steps the next one is booked before this one's token is out.
        self._steps = ledger.steps(rid)

    def __bytes__(self) -> bytes:
        if self._followed is None:
            return self._ledger.pack(self._rid, self._steps)
        return self._ledger.pack(self._rid, self._steps, self._followed.inside()) if self._followed.wanted else b""

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (bytes(self),)
