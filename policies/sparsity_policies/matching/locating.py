"""Where in a text the literals and patterns of policies were found: worked out when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from sparsity_policies.matching.escapes import ALPHABET
from sparsity_policies.matching.readings import Form, forms
from sparsity_policies.matching.rewriting import Step
from sparsity_policies.matching.scan import Hit, Owner, Scanner
from sparsity_policies.matching.signs import signs_of

# Places that are told of one text.
MOST_MATCHES: Final = 64
_WINDOW: Final = 64


class Match(NamedTuple):
    """A place where something was found.

    Attributes:
        owner: what was found, and on whose behalf.
        form: the text's form that it was found in: `written`, or as :class:`Form` has them.
        start: its first character in the text as it was written.
        end: the character behind its last.
    """

    owner: Owner
    form: str
    start: int
    end: int


def locate(text: str, scanner: Scanner, hidden: Sequence[Step] = ()) -> list[Match]:
    """The first place of each literal and pattern, in the first form of the text that has it.

    Args:
        text: as it was written.
        scanner: whose literals and patterns are looked for.
        hidden: each gives another text that is scanned as this one is.

    Raises:
        ValueError: when the engine cannot finish.
    """
    found: dict[Owner, Match] = {}
    for form in _forms(text, hidden):
        data = form.text.encode("utf-8", "replace")
        fresh = [hit for hit in scanner.hits(data) if hit.owner not in found]
        if not fresh:
            continue
        origins = form.traced(text).origins
        for hit in fresh:
            if hit.owner in found or len(found) == MOST_MATCHES:
                continue
            start, end = _extent(data, hit, scanner)
            behind = origins[end] if end < len(origins) else len(text)
            start, end = int(origins[start]), max(int(origins[end - 1]) + 1, int(behind))
            if form.kind.startswith("encoded"):
                # All of the line: a part of it says nothing.
                start, end = len(text[:start].rstrip(ALPHABET)), len(text) - len(text[end:].lstrip(ALPHABET))
            found[hit.owner] = Match(hit.owner, form.kind, start, end)
    return sorted(found.values(), key=lambda match: (match.start, match.owner))


def _forms(text: str, hidden: Sequence[Step]) -> Iterator[Form]:
    for step in (None, *hidden):
        words, steps = (text, ()) if step is None else (step(text), (step,))
        yield Form("written", words, steps)
        for form in forms(words, signs_of(words.encode("utf-8", "replace"))):
            yield Form(form.kind, form.text, (*steps, *form.steps))


def _extent(data: bytes, hit: Hit, scanner: Scanner) -> tuple[int, int]:
    """First character of a match and the one behind its last: of what may begin in several places, the shortest.

    The engine tells ends alone. It is the same engine that finds the beginning, by halves: whatever holds the match
    still matches.
    """
    words = data[: hit.end].decode()

    def holds(start: int) -> bool:
        return any(other.owner == hit.owner for other in scanner.hits(words[start:].encode()))

    size = _WINDOW
    while size < len(words) and not holds(len(words) - size):
        size *= 2
    low, high = max(len(words) - size, 0), len(words)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, len(words)
