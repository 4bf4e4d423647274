"""Triton's interpreter without work that comes to nothing: most of its time, and all that it finds stays the same.

It searches the language for what to patch at each call of a function, patches anew what is patched, makes a table of
dtypes at each look into it, and checks the sums of integers for overflow without an assertion of what it finds.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter

_patch, _numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
# Dtypes by the names that they have themselves, and by those of the language where these are others.
_LONG = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16"}
_KNOWN = frozenset(["int1", *_LONG, *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))])


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


@cache
def _modules(function: Any) -> frozenset[str]:
    """The modules of the language that a function sees, which are those that are patched for it."""
    seen = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(module.__name__ for module in seen if module in (language, language.core))


class _Launch:
    """What is patched for a launch and for all functions that it calls, until its end."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.modules: frozenset[str] = frozenset()

    def patch(self, function: Any) -> _Launch:
        """Patches what the function needs and no function before it did."""
        modules = _modules(function)
        if not modules or not modules <= self.modules:
            self.scopes.append(_patch(function))
            self.modules |= modules
        return self

    def restore(self) -> None:
        """Takes back everything, the last first."""
        while self.scopes:
            self.scopes.pop().restore()
        self.modules = frozenset()


@cache
def _scalar(name: str) -> Any:
    return _numpy_dtype(getattr(language, _LONG.get(name, name)))


def _get_np_dtype(dtype: Any) -> Any:
    scalar = dtype.scalar
    return _scalar(scalar.name) if scalar.name in _KNOWN else _numpy_dtype(dtype)


def spare_the_interpreter() -> None:
    """From now on the interpreter does its work once: kernels compute the same."""
    for place in (language, language.core, language.math, language.tensor, language.core.tensor_descriptor_base):
        assert _names(place)
    interpreter._patch_builtin = _patch_builtin
    interpreter._patch_lang = _Launch().patch
    interpreter._get_np_dtype = _get_np_dtype
    options = interpreter.interpreter_builder.options
    # Only `debug` has the sums asserted.
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=options.debug)
