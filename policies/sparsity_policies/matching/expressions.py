"""Databases of regular expressions that are looked for together, in one pass (Hyperscan, NSDI 2019)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import hyperscan

# Of bytes in either case.
ONCE, ALWAYS = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH, hyperscan.HS_FLAG_CASELESS
_CHARACTERS: Final = ONCE | hyperscan.HS_FLAG_UTF8
# Nothing but ASCII characters, white space between them and hyphens that may be missing.
_WORDS: Final = re.compile(r"(?:[^\\^$.|?*+()\[\]{}\x80-\U0010ffff]|\\[^a-zA-Z0-9\x80-\U0010ffff]\??|\\s\+?)+")

# Makes a database of expressions.
Compile = Callable[[Sequence[str]], Any]


def pattern_problem(pattern: str) -> str | None:
    """What keeps a pattern from being used, or None."""
    if not pattern:
        return "is empty"
    try:
        compile_expressions([pattern])
    except (hyperscan.error, ValueError) as error:
        return f"is not a usable regular expression: {error}"
    return None


def compile_expressions(expressions: Sequence[str], flags: int | None = None) -> Any:
    """A Hyperscan database, in this process.

    Args:
        expressions: what is looked for.
        flags: of each; None looks for the first match of each expression in UTF-8, in either case.

    Raises:
        hyperscan.error: when an expression does not compile.
    """
    database = hyperscan.Database()
    database.compile(
        expressions=[expression.encode() for expression in expressions],
        ids=list(range(len(expressions))),
        elements=len(expressions),
        flags=[_flags(expression) if flags is None else flags for expression in expressions],
    )
    return database


def _flags(expression: str) -> int:
    """Of UTF-8, but where an expression is of ASCII alone: bytes compile in half of the time. The other cases of ASCII
    letters that are none, ``\u017f`` and ``\u212a``, are found all the same: texts are scanned folded, too."""
    return ONCE if _WORDS.fullmatch(expression) else _CHARACTERS


def dump_database(database: Any) -> bytes:
    """What :func:`load_database` reads."""
    return bytes(hyperscan.dumpb(database))


def load_database(data: bytes) -> Any:
    """A database that another process compiled."""
    return hyperscan.loadb(data, mode=hyperscan.HS_MODE_BLOCK)


class Expressions:
    """A compiled database, for any number of threads.

    Args:
        database: what :func:`compile_expressions` made.
    """

    def __init__(self, database: Any) -> None:
        self._database = database
        # What a scan writes on: prompts are scanned on many threads at once, and Hyperscan refuses one that is in use.
        self._scratches = threading.local()

    def matches(self, data: bytes) -> list[tuple[int, int]]:
        """Every match: the number of the expression, and the byte that it ends before.

        Raises:
            ValueError: when Hyperscan fails, such as for want of memory.
        """
        found: list[tuple[int, int]] = []
        if data:
            try:
                if not hasattr(self._scratches, "own"):
                    self._scratches.own = hyperscan.Scratch(self._database)
                self._database.scan(
                    data, lambda number, _, end, *__: found.append((number, end)), scratch=self._scratches.own
                )
            except hyperscan.error as error:
                raise ValueError(f"scan failed: {error}") from error
        return found
