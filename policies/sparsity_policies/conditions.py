"""Policy conditions in CEL, compiled once and run with one shared context a request."""

from __future__ import annotations

from typing import Any

import cel

from sparsity_policies.model import Signals

SAMPLE = Signals(min_tokens=1, max_tokens=1)


def context(signals: Signals) -> cel.Context:
    """The variables that conditions read."""
    variables: dict[str, Any] = {
        "tokens": signals.max_tokens,
        "domain": signals.domain,
        "task": signals.task,
        "tenant": signals.tenant,
        "session": signals.session,
        "flags": sorted(signals.flags),
        "labels": dict(signals.labels),
    }
    return cel.Context(variables=variables)


class Condition:
    """One compiled expression.

    Raises:
        ValueError: when it is not CEL, or reads a variable that does not exist.
    """

    __slots__ = ("_program",)

    def __init__(self, source: str) -> None:
        try:
            self._program = cel.compile(source)
        except Exception as error:  # the library raises several unrelated types
            raise ValueError(f"is not valid CEL: {error}") from error
        known = ("tokens", "domain", "task", "tenant", "session", "flags", "labels")
        bound = _comprehension_names(source)
        unknown = sorted(set(self._program.variables()) - set(known) - bound)
        if unknown:
            raise ValueError(f"reads unknown {', '.join(unknown)}; known are {', '.join(known)}")

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


def _comprehension_names(source: str) -> set[str]:
    """Names that comprehension macros bind, which the library lists among the variables."""
    import re

    return set(re.findall(r"\.(?:all|exists|exists_one|filter|map)\(\s*([A-Za-z_]\w*)\s*,", source))
