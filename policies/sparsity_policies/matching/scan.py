"""Scans whole prompts for the literals and patterns of all policies in one pass over each of their readings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import hyperscan

from sparsity_policies.matching.disguises import SEPARATOR, bare
from sparsity_policies.matching.expressions import Compile, Expressions, compile_expressions
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.readings import normal, prepare, readings
from sparsity_policies.model import Detection, Policy

# A change of this many expressions is compiled beside the database that is there; a larger one compiles all anew.
_BESIDE = 256
# Letters that a literal must have to be looked for in disguise, where shorter ones would be found in anything.
_DISGUISED = 6
_HYPHEN = re.compile(r"(?<=\w)\\-(?=\w)")
_SPECIAL = frozenset("\\^$.|?*+()[]{}#&~-")


class ScanResult(NamedTuple):
    """What a scan found.

    Attributes:
        flags: flags raised.
        domains: domains whose detection matched.
        scanned_bytes: bytes of the text looked at: all of them.
    """

    flags: frozenset[str]
    domains: frozenset[str]
    scanned_bytes: int


class Owner(NamedTuple):
    """What an expression is looked for on behalf of.

    Attributes:
        domain: whose policy has it.
        flag: that it raises; empty for none.
        source: the literal or pattern, as the policy has it.
    """

    domain: str
    flag: str
    source: str


class Hit(NamedTuple):
    """A match in a reading, which ends before the byte ``end``."""

    owner: Owner
    end: int


def _quoted(literal: str, between: str = r"\s+") -> str:
    """A literal as an expression; white space matches any run of it: line breaks hide nothing. A hyphen may be missing,
    because it is where a line's end parts the word."""
    words = ("".join(f"\\{c}" if c in _SPECIAL else c for c in word) for word in literal.split())
    return _HYPHEN.sub(r"\-?", between.join(words))


def _of_literal(literal: str) -> Iterator[str]:
    """Expressions for a literal: as it is written, folded, in its normal form, and as it looks."""
    yield _quoted(literal)
    yield _quoted(folded(literal))
    if len(plain := normal(literal).strip()) >= 3:
        yield _quoted(plain)
    looks = bare(literal).strip(SEPARATOR)
    # Vowel signs count: some scripts write most vowels as marks.
    if len(joined := looks.replace(SEPARATOR, "")) >= _DISGUISED:
        # Letters that stand apart leave no words. Two texts take a third of the time of one expression to compile.
        yield looks
        yield joined


def _of_pattern(pattern: str, compiled: Compile) -> Iterator[str]:
    """Expressions for a pattern: as it is written, and with its characters folded as those of texts are."""
    yield pattern
    if (plain := folded(pattern)) != pattern:
        try:
            compiled([plain])
        except (hyperscan.error, ValueError):
            return
        yield plain


class _Database:
    """The compiled detection of some domains."""

    def __init__(self, detections: Mapping[str, Detection], compiled: Compile = compile_expressions) -> None:
        self.detections = dict(detections)
        self.owners: list[Owner] = []
        expressions: list[str] = []
        for domain, detection in detections.items():
            made = [(literal, _of_literal(literal)) for literal in detection.literals]
            made += [(pattern, _of_pattern(pattern, compiled)) for pattern in detection.patterns]
            for source, found in made:
                for expression in dict.fromkeys(found):
                    expressions.append(expression)
                    self.owners.append(Owner(domain, detection.flag, source))
        try:
            self._expressions = Expressions(compiled(expressions)) if expressions else None
        except hyperscan.error as error:
            raise ValueError(f"the policies' detection does not compile together: {error}") from error

    def hits(self, data: bytes) -> Iterator[Hit]:
        """What ``data`` matches.

        Raises:
            ValueError: when the engine cannot finish.
        """
        if self._expressions is not None:
            for number, end in self._expressions.matches(data):
                yield Hit(self.owners[number], end)


class Scanner:
    """Databases over the detection sections of ``policies``: one, or after a small change to ``previous`` a second one
    for what changed, because compiling thousands of expressions takes seconds.

    Raises:
        ValueError: when they do not compile.
    """

    _base: _Database
    _beside: _Database

    def __init__(
        self, policies: Iterable[Policy], previous: Scanner | None = None, compiled: Compile = compile_expressions
    ) -> None:
        prepare()
        wanted = {
            policy.domain: policy.detection
            for policy in policies
            if policy.detection.literals or policy.detection.patterns
        }
        base = previous._base if previous else None
        if base is not None:
            kept = {domain for domain, detection in base.detections.items() if wanted.get(domain) == detection}
            fresh = {domain: detection for domain, detection in wanted.items() if domain not in kept}
            if sum(len(item.literals) + len(item.patterns) for item in fresh.values()) <= _BESIDE:
                self._base, self._kept = base, kept
                assert previous is not None
                beside = previous._beside
                self._beside = beside if beside.detections == fresh else _Database(fresh, compiled)
                return
        self._base, self._kept = _Database(wanted, compiled), set(wanted)
        self._beside = _Database({})

    def hits(self, data: bytes) -> list[Hit]:
        """The first match of each expression in one reading.

        Raises:
            ValueError: when the engine cannot finish.
        """
        found = [hit for hit in self._base.hits(data) if hit.owner.domain in self._kept]
        return [*found, *self._beside.hits(data)]

    def scan(self, text: str | bytes | Sequence[bytes]) -> ScanResult:
        """Scans all of a text, in every reading; or the readings of one, the text itself first.

        Raises:
            ValueError: when the engine cannot finish; the caller must then go dense.
        """
        if isinstance(text, str):
            text = text.encode("utf-8", "replace")
        parts = readings(text) if isinstance(text, bytes) else text
        owners = {hit.owner for part in parts for hit in self.hits(part)}
        return ScanResult(
            frozenset(owner.flag for owner in owners if owner.flag),
            frozenset(owner.domain for owner in owners),
            len(parts[0]),
        )
