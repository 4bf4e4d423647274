"""What a condition can cost at most, told from its text and from how large a request's context may be.

Abstract interpretation over sizes: each value is bounded by its length and by its elements, so that comprehensions over
comprehensions, lists that double and texts that grow are all seen. A step is about a tenth of a microsecond of the
library's (measured on one x86-64 core): a request's rules take 20 milliseconds at most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sparsity_serving.bounds import MAX_FLAGS, MAX_LABELS, MAX_NAME

from sparsity_policies.matching.cel_syntax import Node, parse

MAX_RULE_STEPS = 100_000
MAX_POLICY_STEPS = 200_000
# A policy may raise a flag of its own; beside the caller's there are no more than these.
MAX_RAISED_FLAGS = 64
_MACROS = {"all": 2, "exists": 2, "exists_one": 2, "filter": 2, "map": 3}
# By the length of what they give: a number's, or that of their longest argument.
_OF_TIMES = frozenset(
    {"getFullYear", "getMonth", "getDayOfYear", "getDayOfMonth", "getDate", "getDayOfWeek"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
_OF_TEXTS = frozenset({"size", "contains", "startsWith", "endsWith", "matches", "has"})
_OF_NUMBERS = _OF_TIMES | _OF_TEXTS | {"double", "int", "uint", "duration", "timestamp"}
_OF_VALUES = frozenset({"string", "bytes", "max", "min"})
FUNCTIONS = _OF_NUMBERS | _OF_VALUES | _MACROS.keys()
_NUMBER_CHARACTERS = 64
# Steps to compile parts of a regular expression, which the library does at every evaluation.
_REGEX, _CHARACTER, _SET, _CLASS, _CASELESS = 400, 10, 80, 5000, 60
_CLASSES = frozenset("wWdDsSpPbB")
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")
# Characters that are copied, and values that are compared, in a step.
_COPIED, _COMPARED = 256, 8


class Size(NamedTuple):
    """Bounds of a value.

    Attributes:
        length: elements, or characters.
        item: bounds of every element; None for a text or a number.
    """

    length: int = 0
    item: Size | None = None

    @property
    def words(self) -> int:
        """Steps to copy it."""
        each = 1 if self.item is None else self.item.words
        return 1 + (self.length // _COPIED if self.item is None else self.length * each)


_TEXT = Size(MAX_NAME)
_VARIABLES = {
    "labels": Size(MAX_LABELS, _TEXT),
    "flags": Size(MAX_FLAGS + MAX_RAISED_FLAGS, _TEXT),
    "task": _TEXT,
    "tenant": _TEXT,
    "session": _TEXT,
    "domain": _TEXT,
}


def bound(source: str) -> int:
    """The most steps that an evaluation of ``source`` takes.

    Raises:
        ValueError: when it is not CEL, uses what has no bound, or may take more than ``MAX_RULE_STEPS``.
    """
    estimate = _Estimate()
    estimate.size(parse(source), _VARIABLES)
    return estimate.steps


def fits(name: str, value: object) -> bool:
    """Whether a variable's value lies within what :func:`bound` takes it for."""
    size = _VARIABLES.get(name)
    if size is None or not isinstance(value, str | list | dict):
        return True
    texts = () if isinstance(value, str) else (*value, *value.values()) if isinstance(value, dict) else value
    return len(value) <= size.length and all(len(text) <= MAX_NAME for text in texts)


class _Estimate:
    """Counts steps, and stops as soon as they are too many."""

    def __init__(self) -> None:
        self.steps = 0
        self._times = 1

    def _spend(self, steps: int) -> None:
        self.steps += steps * self._times
        if self.steps > MAX_RULE_STEPS:
            problem = f"may take more than {MAX_RULE_STEPS} steps for one request"
            raise ValueError(f"{problem}: nest fewer comprehensions, or over less")

    def size(self, node: Node, names: dict[str, Size]) -> Size:
        """The bounds of a part's value; its steps are spent."""
        self._spend(1)
        if node.kind == "literal":
            return Size()
        if node.kind == "text":
            return Size(len(node.value))
        if node.kind == "name":
            return names.get(node.value, Size())
        if node.kind == "call":
            return self._call(node, names)
        sizes = [self.size(part, names) for part in node.parts]
        if node.kind in ("list", "map"):
            made = Size(len(sizes) // (2 if node.kind == "map" else 1), _any(sizes))
            self._spend(made.words)
            return made
        if node.kind == "select":
            return sizes[0].item or Size()
        if node.kind == "index":
            return sizes[0].item or Size()
        if node.kind == "choice":
            return _any(sizes[1:])
        if node.kind == "binary":
            return self._binary(node.value.split(), sizes)
        return sizes[0]

    def _binary(self, signs: Sequence[str], sizes: Sequence[Size]) -> Size:
        left = sizes[0]
        for sign, right in zip(signs, sizes[1:], strict=True):
            if sign == "+":
                left = Size(left.length + right.length, _any([left, right]).item)
                self._spend(left.words)
            else:
                if sign not in ("&&", "||"):
                    self._spend((right.words if sign == "in" else min(left.words, right.words)) // _COMPARED)
                left = Size()
        return left

    def _call(self, node: Node, names: dict[str, Size]) -> Size:
        if node.method and node.value in _MACROS:
            return self._comprehension(node, names)
        if node.value not in _OF_NUMBERS | _OF_VALUES:
            raise ValueError(
                f"Undefined variable or function: {node.value!r}; there are {', '.join(sorted(FUNCTIONS))}"
            )
        sizes = [self.size(part, names) for part in node.parts]
        self._spend(sum(size.words for size in sizes) // (1 if node.value in _OF_VALUES else _COMPARED))
        if node.value == "matches":
            pattern = node.parts[-1]
            if pattern.kind != "text":
                raise ValueError("the pattern of `matches` must be a text in quotes")
            self._spend(_regex(pattern.value))
        if node.value in _OF_NUMBERS:
            return Size()
        found = _any(sizes)
        # In UTF-8 a character takes four bytes at most.
        return Size(max(4 * found.length, _NUMBER_CHARACTERS), found.item)

    def _comprehension(self, node: Node, names: dict[str, Size]) -> Size:
        over, *rest = node.parts
        size = self.size(over, names)
        if not 2 <= len(rest) <= _MACROS[node.value] or rest[0].kind != "name":
            raise ValueError(f"is not valid CEL: {node.value}() takes a name and what is asked of it")
        inner = names | {rest[0].value: size.item or Size()}
        times, self._times = self._times, self._times * size.length
        found = [self.size(part, inner) for part in rest[1:]]
        # The library builds a list by copying it at every element.
        self._spend(2 + (size.length if node.value in ("map", "filter") else 0))
        self._times = times
        if node.value == "map":
            return Size(size.length, found[-1])
        return size if node.value == "filter" else Size()


def _any(sizes: Sequence[Size]) -> Size:
    """Bounds that hold for each of ``sizes``."""
    items = [size.item for size in sizes if size.item is not None]
    return Size(max((size.length for size in sizes), default=0), _any(items) if items else None)


def _regex(literal: str) -> int:
    """Steps to compile a regular expression, written as a literal."""
    groups, last, at = [0], 0, 0
    while at < len(literal):
        letter, at = literal[at], at + 1
        if letter == "\\":
            # However many backslashes the literal needs for one.
            while at < len(literal) and literal[at] == "\\":
                at += 1
            last = _CLASS if literal[at : at + 1] and literal[at] in _CLASSES else _CHARACTER
            at += 1
        elif letter == "(":
            groups.append(0)
            continue
        elif letter == ")" and len(groups) > 1:
            last = groups.pop()
        elif letter == "{" and (counted := _COUNTED.match(literal, at - 1)):
            most = int(counted[2] or counted[1])
            groups[-1] += last * max(most - 1, 0)
            at, last = counted.end(), last * max(most, 1)
            continue
        elif letter == "[":
            # A bracket that comes first, or after `^`, is one of the set.
            end = literal.find("]", at + 2)
            inside, at = literal[at:end], end + 1 if end >= 0 else len(literal)
            last = _SET + _CHARACTER * len(inside) + _CLASS * inside.count("\\")
        else:
            last = _SET if letter == "." else _CHARACTER
        groups[-1] += last
    caseless = _CASELESS if re.search(r"\(\?[a-zA-Z]*i", literal) else 1
    return _REGEX + sum(groups) * caseless * 2
