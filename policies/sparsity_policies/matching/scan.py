"""Scans whole prompts for the literals and patterns of all policies in one pass over each of their readings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

import hyperscan

from sparsity_policies.matching.disguises import SEPARATOR, bare
from sparsity_policies.matching.expressions import Compile, Expressions, compile_expressions
from sparsity_policies.matching.folding import folded
from sparsity_policies.matching.readings import normal, prepare, readings
from sparsity_policies.model import Policy

# So many new literals and patterns are compiled beside the database that is there; more compile all anew.
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


class _Sought(NamedTuple):
    """A literal or pattern of a policy."""

    owner: Owner
    is_pattern: bool


def _sought(policies: Iterable[Policy]) -> list[_Sought]:
    """What the policies look for, each once."""
    return list(
        dict.fromkeys(
            _Sought(Owner(policy.domain, policy.detection.flag, source), is_pattern)
            for policy in policies
            for is_pattern, sources in ((False, policy.detection.literals), (True, policy.detection.patterns))
            for source in sources
        )
    )


class _Database:
    """Literals and patterns, compiled."""

    def __init__(self, sought: Sequence[_Sought], compiled: Compile = compile_expressions) -> None:
        self.sought = sought
        self._owned: list[_Sought] = []
        expressions: list[str] = []
        for each in sought:
            source = each.owner.source
            for expression in dict.fromkeys(_of_pattern(source, compiled) if each.is_pattern else _of_literal(source)):
                expressions.append(expression)
                self._owned.append(each)
        try:
            self._expressions = Expressions(compiled(expressions)) if expressions else None
        except hyperscan.error as error:
            raise ValueError(f"the policies' detection does not compile together: {error}") from error

    def hits(self, data: bytes, but: Set[_Sought] = frozenset()) -> Iterator[Hit]:
        """What ``data`` matches, but for some.

        Raises:
            ValueError: when the engine cannot finish.
        """
        if self._expressions is not None:
            for number, end in self._expressions.matches(data):
                if (found := self._owned[number]) not in but:
                    yield Hit(found.owner, end)


class Scanner:
    """Databases over the detection sections of ``policies``: one, or after a small change to ``previous`` a second one
    for what is new, because compiling thousands of expressions takes seconds.

    Raises:
        ValueError: when they do not compile.
    """

    _base: _Database
    _beside: _Database

    def __init__(
        self, policies: Iterable[Policy], previous: Scanner | None = None, compiled: Compile = compile_expressions
    ) -> None:
        prepare()
        wanted = _sought(policies)
        self._gone: Set[_Sought] = frozenset()
        if previous is not None:
            base = previous._base
            there = frozenset(base.sought)
            fresh = [each for each in wanted if each not in there]
            if len(fresh) <= _BESIDE:
                self._base, self._gone = base, there.difference(wanted)
                beside = previous._beside
                self._beside = beside if beside.sought == fresh else _Database(fresh, compiled)
                return
        self._base = _Database(wanted, compiled)
        self._beside = _Database([])

    def hits(self, data: bytes) -> list[Hit]:
        """The first match of each expression in one reading.

        Raises:
            ValueError: when the engine cannot finish.
        """
        return [*self._base.hits(data, self._gone), *self._beside.hits(data)]

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
