"""Scans whole prompts for the literals and patterns of all policies in one pass (Hyperscan, NSDI 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import hyperscan

from sparsity_policies.model import Policy

_FLAGS = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_UTF8 | hyperscan.HS_FLAG_SINGLEMATCH


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
        _compile([pattern])
    except (hyperscan.error, ValueError) as error:
        return f"is not a usable regular expression: {error}"
    return None


def _compile(expressions: list[str]) -> Any:
    database = hyperscan.Database()
    database.compile(
        expressions=[expression.encode() for expression in expressions],
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=[_FLAGS] * len(expressions),
    )
    return database


def _quoted(literal: str) -> str:
    """A literal as an expression; white space matches any run of it, so that line breaks hide nothing."""
    special = set("\\^$.|?*+()[]{}#&~-")
    words = ("".join(f"\\{c}" if c in special else c for c in word) for word in literal.split())
    return r"\s+".join(words)


class Scanner:
    """One database over the detection sections of ``policies``.

    Raises:
        ValueError: when it does not compile.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._owners: list[tuple[str, str]] = []
        expressions: list[str] = []
        for policy in policies:
            detection = policy.detection
            for expression in (*map(_quoted, detection.literals), *detection.patterns):
                expressions.append(expression)
                self._owners.append((policy.domain, detection.flag))
        try:
            self._database = _compile(expressions) if expressions else None
        except hyperscan.error as error:
            raise ValueError(f"the policies' detection does not compile together: {error}") from error

    def scan(self, text: str | bytes) -> ScanResult:
        """Scans all of ``text``.

        Raises:
            ValueError: when the engine cannot finish; the caller must then go dense.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        hits: set[int] = set()
        if self._database is not None and data:
            try:
                self._database.scan(data, match_event_handler=lambda number, *_: hits.add(number))
            except hyperscan.error as error:
                raise ValueError(f"scan failed: {error}") from error
        owners = [self._owners[number] for number in hits]
        return ScanResult(
            frozenset(flag for _, flag in owners if flag), frozenset(domain for domain, _ in owners), len(data)
        )
