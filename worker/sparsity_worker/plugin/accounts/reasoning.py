"""Which tokens of a text lie in a reasoning span: from an opening marker to its closing one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Reasoning:
    """Follows one request's text.

    Args:
        markers: token ids of the opening and the closing marker; without them all that is generated is a span.
        prompt: the prompt's token ids, which may open a span for the answer, as chat templates of such models do.

    Raises:
        ValueError: when there is one marker.
    """

    def __init__(self, markers: Sequence[int], prompt: Sequence[int]) -> None:
        if len(markers) not in (0, 2):
            raise ValueError(f"markers: are {len(markers)}, not an opening and a closing one")
        self.markers = (markers[0], markers[1]) if markers else None
        self._prompt = len(prompt)
        self._inside = not markers
        for token in prompt:
            self._follow(token)
        # After each generated token.
        self._states: list[bool] = []

    def goes_on(self, generated: Sequence[int]) -> bool:
        """Whether the last token of ``generated``, which has grown since the last call, lies in a span."""
        for token in generated[len(self._states) :]:
            self._follow(token)
            self._states.append(self._inside)
        return self._inside

    def inside(self, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the newest of so many tokens of prompt and text lies in a span; one not followed yet as the last."""
        states = np.array(self._states or [self._inside])
        found: NDArray[np.bool_] = states[np.minimum(lengths - self._prompt, len(states)) - 1]
        return found

    def _follow(self, token: int) -> None:
        if self.markers is not None and token in self.markers:
            self._inside = token == self.markers[0]
