"""What is asked of the store about an override, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsity_policies.documents.envelope import open_overrides
from sparsity_policies.storage.contents import Asked, Word

# Seconds since the epoch that stand for no time at all.
_NEVER = 1e12
# How much earlier than it was said an override's write is looked for: clocks are set back.
_BEFORE_MS = 600_000


def milliseconds(since: float) -> int:
    """A time as the scripts have it."""
    return int(min(since, _NEVER) * 1000)


def arguments(asked: Asked) -> tuple[str | int, ...]:
    """What the script ``WORD`` takes."""
    if asked.event is not None:
        return asked.id, "", asked.revision, asked.event, asked.token, ""
    said = milliseconds(asked.since)
    first = max(said - _BEFORE_MS, 0) if asked.token else said
    return asked.id, said, asked.revision, asked.read_event, asked.token, first


def read(asked: Asked, answer: Sequence[Any]) -> Word:
    """The word in the script's answer."""
    said, body, new = int(answer[0]), str(answer[1] or ""), int(answer[2])
    found, _ = open_overrides({asked.id: body} if body else {})
    return Word(found[0] if found else None, said == 1, said == 2, new == 1)
