"""Policy conditions in CEL, compiled once and run with one shared context a request."""

from __future__ import annotations

import re
from typing import Any

import cel

from sparsity_policies.matching.cel_cost import bound, fits
from sparsity_policies.model import Signals

VARIABLES = ("tokens", "domain", "task", "tenant", "session", "flags", "labels")
# One with nothing set and one with everything, so that a type error on either side of an operator shows.
SAMPLES = (
    Signals(min_tokens=1, max_tokens=1),
    Signals(100_000, 100_000, "d", False, frozenset({"f"}), "t", (("l", "v"),), tenant="t", session="s"),
)
# What the library says of an expression that can never be evaluated; a missing key or index may be there next time.
_TYPE_ERRORS = ("not bool", "overload", "type", "unsupported", "cannot be compared", "undefined")


def context(signals: Signals) -> cel.Context:
    """The variables that conditions read.

    One that is larger than conditions are bounded for is left out: a rule that reads it cannot be evaluated.
    """
    variables: dict[str, Any] = {
        "tokens": signals.max_tokens,
        "domain": signals.domain,
        "task": signals.task,
        "tenant": signals.tenant,
        "session": signals.session,
        "flags": sorted(signals.flags),
        "labels": dict(signals.labels),
    }
    return cel.Context(variables={name: value for name, value in variables.items() if fits(name, value)})


class Condition:
    """One compiled expression.

    Attributes:
        steps: what an evaluation takes at most, see :mod:`sparsity_policies.matching.cel_cost`.
        reads_tokens: whether it reads the prompt's length.

    Raises:
        ValueError: when it is not CEL, reads a variable that does not exist, or may take too long.
    """

    __slots__ = ("_program", "_source", "reads_tokens", "steps")

    def __init__(self, source: str) -> None:
        self._source = source
        # First: the library's own parser is not asked about what is too long or too deep for it.
        self.steps = bound(source)
        try:
            self._program = cel.compile(source)
        except Exception as error:  # the library raises several unrelated types
            raise ValueError(f"is not valid CEL: {error}") from error
        unknown = sorted(set(self._program.variables()) - set(VARIABLES) - _comprehension_names(source))
        if unknown:
            raise ValueError(f"reads unknown {', '.join(unknown)}; known are {', '.join(VARIABLES)}")
        self.reads_tokens = "tokens" in self._program.variables()

    @property
    def constant(self) -> bool | None:
        """What it always is, when it reads no variable; else None."""
        if set(self._program.variables()) & set(VARIABLES):
            return None
        try:
            return self.holds(context(SAMPLES[0]))
        except ValueError:
            return None

    def holds(self, shared: cel.Context) -> bool:
        """Whether the condition is true.

        Raises:
            ValueError: when it cannot be evaluated or is not of type bool.
        """
        try:
            result = self._program.execute(shared)
        except Exception as error:  # as above
            raise ValueError(str(error)) from error
        if not isinstance(result, bool):
            raise ValueError(f"is of type {type(result).__name__}, not bool")
        return result

    def type_error(self) -> str:
        """What keeps it, or an operand of its `&&` and `||`, from ever being evaluated; empty when nothing does."""
        # Operands are tried one by one, because CEL forgives an error beside an operand that decides alone.
        for part in (self._source, *operands(self._source)):
            try:
                program = Condition(part)
            except ValueError:
                # An operand of a comprehension reads names that only the whole binds.
                continue
            for sample in SAMPLES:
                try:
                    program.holds(context(sample))
                except ValueError as error:
                    if any(word in str(error).lower() for word in _TYPE_ERRORS):
                        told = str(error).partition(". ")[0]
                        return told if part == self._source else f"`{part}`: {told}"
        return ""


def split(source: str, operator: str) -> list[str]:
    """The operands of ``operator`` (`&&` or `||`) outside of brackets and strings, without brackets around them."""
    parts, depth, start, at, quote = [], 0, 0, 0, ""
    while at < len(source):
        letter = source[at]
        if quote:
            at += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif depth == 0 and source.startswith(operator, at):
            parts.append(source[start:at])
            at += 1
            start = at + 1
        at += 1
    return [_bare(part) for part in (*parts, source[start:])]


def operands(source: str) -> list[str]:
    """Every operand of `&&` and `||` in ``source``, at any depth; none when it has neither."""
    for operator in ("||", "&&"):
        if len(parts := split(source, operator)) > 1:
            return [leaf for part in parts for leaf in operands(part) or [part]]
    return []


def _bare(text: str) -> str:
    text = text.strip()
    while text.startswith("(") and text.endswith(")") and _closes_at_end(text):
        text = text[1:-1].strip()
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at == len(text) - 1
    return False


def _comprehension_names(source: str) -> set[str]:
    """Names that comprehension macros bind, which the library lists among the variables."""
    return set(re.findall(r"\.(?:all|exists|exists_one|filter|map)\(\s*([A-Za-z_]\w*)\s*,", source))
