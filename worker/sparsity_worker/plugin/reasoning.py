"""Which tokens of a text lie in a reasoning span: from an opening marker to its closing one."""

from __future__ import annotations

from collections.abc import Sequence


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
        self._markers = tuple(markers)
        self._read = 0
        self._inside = not markers
        self._follow(prompt)

    def goes_on(self, generated: Sequence[int]) -> bool:
        """Whether the last token of ``generated``, which has grown since the last call, lies in a span."""
        self._follow(generated[self._read :])
        self._read = len(generated)
        return self._inside

    def _follow(self, tokens: Sequence[int]) -> None:
        last = next((token for token in reversed(tokens) if token in self._markers), None)
        if last is not None:
            self._inside = last == self._markers[0]
