"""Real English text for calibration, demonstrations and benchmarks: the documentation of the running Python."""

from __future__ import annotations

import functools


@functools.cache
def technical_text() -> str:
    """About 600 kB of technical English, the language reference of the running Python (PSF licence)."""
    from pydoc_data import topics

    return "\n\n".join(text for _, text in sorted(topics.topics.items()))


def excerpt(characters: int, start: int = 0) -> str:
    """``characters`` of it from ``start`` on, wrapping around."""
    text = technical_text()
    start %= len(text)
    repeated = text[start:] + text * (1 + characters // len(text))
    return repeated[:characters]
