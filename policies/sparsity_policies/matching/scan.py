"""Scans whole prompts for the literals and patterns of all policies in one pass (Hyperscan, NSDI 2019)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import hyperscan

from sparsity_policies.matching.folding import folded
from sparsity_policies.model import Detection, Policy

# A change of this many expressions is compiled beside the database that is there; a larger one compiles all anew.
_BESIDE = 256
_FLAGS = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_UTF8 | hyperscan.HS_FLAG_SINGLEMATCH


# Makes a database of expressions.
Compile = Callable[[Sequence[str]], Any]


class ScanResult(NamedTuple):
    """What a scan found.

    Attributes:
        flags: flags raised.
        domains: domains whose detection matched.
        scanned_bytes: bytes looked at: all of them.
    """

    flags: frozenset[str]
    domains: frozenset[str]
    scanned_bytes: int


def pattern_problem(pattern: str) -> str | None:
    """What keeps a pattern from being used, or None."""
    if not pattern:
        return "is empty"
    try:
        compile_expressions([pattern])
    except (hyperscan.error, ValueError) as error:
        return f"is not a usable regular expression: {error}"
    return None


def compile_expressions(expressions: Sequence[str]) -> Any:
    """A Hyperscan database, in this process.

    Raises:
        hyperscan.error: when an expression does not compile.
    """
    database = hyperscan.Database()
    database.compile(
        expressions=[expression.encode() for expression in expressions],
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=[_FLAGS] * len(expressions),
    )
    return database


def dump_database(database: Any) -> bytes:
    """What :func:`load_database` reads."""
    return bytes(hyperscan.dumpb(database))


def load_database(data: bytes) -> Any:
    """A database that another process compiled."""
    return hyperscan.loadb(data, mode=hyperscan.HS_MODE_BLOCK)


def _quoted(literal: str) -> str:
    """A literal as an expression, folded as texts are; white space matches any run of it: line breaks hide nothing."""
    special = set("\\^$.|?*+()[]{}#&~-")
    words = ("".join(f"\\{c}" if c in special else c for c in word) for word in folded(literal).split())
    return r"\s+".join(words)


class _Database:
    """The compiled detection of some domains."""

    def __init__(self, detections: Mapping[str, Detection], compiled: Compile = compile_expressions) -> None:
        self.detections = dict(detections)
        self.owners: list[tuple[str, str]] = []
        expressions: list[str] = []
        for domain, detection in detections.items():
            for expression in (*map(_quoted, detection.literals), *detection.patterns):
                expressions.append(expression)
                self.owners.append((domain, detection.flag))
        try:
            self._database = compiled(expressions) if expressions else None
        except hyperscan.error as error:
            raise ValueError(f"the policies' detection does not compile together: {error}") from error
        # What a scan writes on: prompts are scanned on many threads at once, and Hyperscan refuses one that is in use.
        self._scratches = threading.local()

    def _scratch(self) -> Any:
        """This thread's own."""
        if not hasattr(self._scratches, "own"):
            self._scratches.own = hyperscan.Scratch(self._database)
        return self._scratches.own

    def scan(self, data: bytes) -> set[int]:
        """Numbers of the expressions that ``data`` matches.

        Raises:
            ValueError: when Hyperscan fails, such as for want of memory.
        """
        hits: set[int] = set()
        if self._database is not None and data:
            try:
                self._database.scan(data, lambda number, *_: hits.add(number), scratch=self._scratch())
            except hyperscan.error as error:
                raise ValueError(f"scan failed: {error}") from error
        return hits


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

    def scan(self, text: str | bytes) -> ScanResult:
        """Scans all of ``text``.

        Raises:
            ValueError: when the engine cannot finish; the caller must then go dense.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        owners = [self._base.owners[number] for number in self._base.scan(data)]
        found = [owner for owner in owners if owner[0] in self._kept]
        found += [self._beside.owners[number] for number in self._beside.scan(data)]
        return ScanResult(
            frozenset(flag for _, flag in found if flag), frozenset(domain for domain, _ in found), len(data)
        )
