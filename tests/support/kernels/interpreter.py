"""Triton's interpreter without half of its work: it searches the language for what to patch anew at each call."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter


@cache
def _names(place: Any) -> tuple[str, ...]:
    """The built-in functions of a module or a class of the language, found when none of them is patched yet."""
    return tuple(name for name, member in inspect.getmembers(place) if language.core.is_builtin(member))


def _patch_builtin(place: Any, builder: Any, scope: Any) -> None:
    for name in _names(place):
        member = getattr(place, name)
        # Not where a kernel that calls this one has patched it.
        if language.core.is_builtin(member):
            interpreter._patch_attr(place, name, member, builder, scope)


def remember_builtins() -> None:
    """From now on the interpreter searches each module and class of the language once; it patches the same."""
    for place in (language, language.core, language.math, language.tensor, language.core.tensor_descriptor_base):
        assert _names(place)
    interpreter._patch_builtin = _patch_builtin
