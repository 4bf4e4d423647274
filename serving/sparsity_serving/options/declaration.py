"""Options of a process, each stated once: a dataclass field that says name, default, bounds and help.

What is made of the statement: command line, environment and file (`settings`), the page in the docs
(`tools/options.py`) and the chart's schema (`deploy/tools/values_schema.py`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparsity_rpc.errors import ConfigurationError

_KEY = "option"


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What is said of an option where it is declared.

    Attributes:
        help: what it is, for somebody who runs the process.
        name: without dashes; the field's name with dashes without it.
        choices: the values that it takes.
        least: the smallest value.
        above: a value that it must exceed.
        most: the largest value.
        below: a value that it must not reach.
        environment: the variable's name, where it is not made of prefix and name.
        read: from text to the whole value, in place of the field's type; gets the option as errors name it, and the
            text.
        shown: the default as text, where that is not the value's own.
        secret: whether its value may hold a password: settings are told without it.
        inner: whether only our own processes give it: it is in no table, no file and no environment.
    """

    help: str
    name: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    environment: str | None = None
    read: Callable[[str, str], Any] | None = None
    shown: str | None = None
    secret: bool = False
    inner: bool = False

    def bounds(self) -> str:
        """What values it takes, in words; empty when all of its type are."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        low = f"at least {self.least:g}" if self.least is not None else ""
        low = f"more than {self.above:g}" if self.above is not None else low
        high = f"at most {self.most:g}" if self.most is not None else ""
        high = f"less than {self.below:g}" if self.below is not None else high
        return " and ".join(filter(None, (low, high)))

    def admits(self, value: Any) -> bool:
        """Whether a value lies within the bounds. None, which is no value, does."""
        if value is None or (self.read and not isinstance(value, (str, int, float))):
            return True
        if self.choices:
            return value in self.choices
        # A number that is none compares as false with everything.
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


def option(help: str, default: Any = dataclasses.MISSING, **said: Any) -> Any:
    """A dataclass field that is an option; ``said`` are `Option`'s other attributes."""
    return _field(Option(help, **said), default)


def group(default: Any = dataclasses.MISSING, **members: Option) -> Any:
    """A dataclass field whose value is a class with several options, by the class's fields.

    A group that may be None is None while none of its options is given.
    """
    return _field(members, default)


def same(settings: type, name: str) -> Any:
    """A dataclass field that is an option of another class of settings, by the name of its field there."""
    (stated,) = [field for field in dataclasses.fields(settings) if field.name == name]
    return _field(stated.metadata[_KEY], _stated(stated))


def _field(said: Option | dict[str, Option], default: Any) -> Any:
    shown = not (isinstance(said, Option) and said.secret)
    if callable(default):
        return dataclasses.field(default_factory=default, repr=shown, metadata={_KEY: said})
    return dataclasses.field(default=default, repr=shown, metadata={_KEY: said})


class Leaf(NamedTuple):
    """One option of a class of settings.

    Attributes:
        path: fields that lead to it, one or two.
        said: its declaration; its name is filled in.
        kind: the type of a value: of each one where it repeats.
        repeats: whether it may be given several times.
        default: MISSING where it must be given.
        group: the class of the value that it is part of, for one of a group that may be None.
    """

    path: tuple[str, ...]
    said: Option
    kind: type
    repeats: bool
    default: Any
    group: type | None = None

    @property
    def flag(self) -> str:
        """As it is written on a command line."""
        return f"--{self.said.name}"

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING


def leaves(settings: type) -> Iterator[Leaf]:
    """The options of a class of settings, in the order of its fields."""
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        said = field.metadata.get(_KEY)
        if isinstance(said, Option):
            name = said.name or field.name.replace("_", "-")
            kind, several = _kind(hints[field.name])
            repeats = several and said.read is None
            yield Leaf((field.name,), dataclasses.replace(said, name=name), kind, repeats, _default(field))
        elif said is not None:
            whole, cls = _default(field), _kind(hints[field.name])[0]
            member_hints = typing.get_type_hints(cls)
            for name, member in said.items():
                default = None if whole is None else getattr(whole, name)
                kind, several = _kind(member_hints[name])
                repeats = several and member.read is None
                yield Leaf((field.name, name), member, kind, repeats, default, cls if whole is None else None)


def _kind(hint: Any) -> tuple[type, bool]:
    """A field's type without None, and whether it holds several values."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        return typing.get_args(hint)[0], True
    return hint, False


def _stated(field: dataclasses.Field[Any]) -> Any:
    """Its default, or what makes it."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def check_bounds(settings: Any) -> None:
    """Compares every value of an instance with its option's bounds.

    Raises:
        ConfigurationError: naming the option, what it takes, and the value.
    """
    for leaf in leaves(type(settings)):
        value = settings
        for name in leaf.path:
            value = None if value is None else getattr(value, name)
        for one in value if leaf.repeats and value is not None else (value,):
            if not leaf.said.admits(one):
                shown = str(one) if isinstance(one, Path) else repr(one)
                raise ConfigurationError(f"{leaf.flag}: must be {leaf.said.bounds()}, not {shown}")
