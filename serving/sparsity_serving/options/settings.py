"""Settings out of a command line, the environment and a file, in that order; what none of them says is the default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from sparsity_rpc.errors import ConfigurationError

from sparsity_serving.options.declaration import Leaf, leaves

_Settings = TypeVar("_Settings")
_TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
CONFIG = "config"


def variable(leaf: Leaf, prefix: str) -> str:
    """The environment variable of an option."""
    return leaf.said.environment or f"{prefix}_{leaf.said.name}".upper().replace("-", "_")


def parser_of(settings: type, prefix: str, program: str, description: str | None) -> argparse.ArgumentParser:
    """A command line of every option of a class of settings. Texts are read later, so that errors name their source."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        allow_abbrev=False,
        epilog=f"Every option may stand in the environment too (--listen: {prefix}_LISTEN), and in the file of"
        f" --{CONFIG}; the command line counts first, then the environment, then the file.",
    )
    parser.add_argument(f"--{CONFIG}", type=Path, help="YAML file of options by name, without dashes in front")
    for leaf in leaves(settings):
        told = {"help": argparse.SUPPRESS if leaf.said.inner else leaf.said.help.replace("%", "%%")}
        common = {"dest": leaf.said.name, "default": argparse.SUPPRESS}
        if leaf.kind is bool:
            parser.add_argument(leaf.flag, action=argparse.BooleanOptionalAction, **common, **told)  # type: ignore[arg-type]
            continue
        choices = "{" + ",".join(leaf.said.choices) + "}" if leaf.said.choices else None
        action = "append" if leaf.repeats else "store"
        parser.add_argument(leaf.flag, action=action, metavar=choices, **common, **told)  # type: ignore[arg-type]
    return parser


def read_settings(
    settings: type[_Settings],
    prefix: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> _Settings:
    """An instance of the class of settings.

    Args:
        settings: a dataclass whose fields are options.
        prefix: of the environment's variables.
        parser: `parser_of` the same.
        arguments: of the command line; this process's own without them.
        environment: variables; this process's own without them.

    Raises:
        ConfigurationError: naming the option, the variable or the file's key, when one is missing or cannot be used.
    """
    given = vars(parser.parse_args(arguments))
    variables = os.environ if environment is None else environment
    path: Path | None = given.pop(CONFIG, None) or _path(variables.get(f"{prefix}_{CONFIG}".upper()))
    written = _file(path, settings) if path else {}
    found: dict[tuple[str, ...], Any] = {}
    for leaf in leaves(settings):
        name = leaf.said.name
        if name in given:
            found[leaf.path] = _read(leaf, leaf.flag, given[name])
        elif (text := variables.get(variable(leaf, prefix))) and not leaf.said.inner:
            found[leaf.path] = _read(leaf, variable(leaf, prefix), text.split() if leaf.repeats else text)
        elif name in written:
            found[leaf.path] = _read(leaf, f"{path}: {name}", written[name])
        elif leaf.required:
            where = f"--{CONFIG}, {variable(leaf, prefix)}"
            raise ConfigurationError(f"{leaf.flag}: must be given ({leaf.said.help}), here or by {where}")
    return settings(**_values(settings, found))


def _values(settings: type, found: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Fields of the settings; groups are put together of what was given and their defaults."""
    values = {path[0]: value for path, value in found.items() if len(path) == 1}
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(settings):
        if len(leaf.path) == 2:
            groups.setdefault(leaf.path[0], []).append(leaf)
    for name, members in groups.items():
        given = {leaf.path[1]: found[leaf.path] for leaf in members if leaf.path in found}
        if given:
            whole = {leaf.path[1]: leaf.default for leaf in members} | given
            values[name] = _group(members, given) if members[0].group else _class_of(settings, name)(**whole)
    return values


def _class_of(settings: type, name: str) -> type:
    [field] = [field for field in dataclasses.fields(settings) if field.name == name]
    if field.default_factory is not dataclasses.MISSING:
        return type(field.default_factory())
    return type(field.default)


def _group(members: Sequence[Leaf], given: Mapping[str, Any]) -> Any:
    """A group that may be None, of which some options are given: what it cannot do without must be."""
    [cls] = {leaf.group for leaf in members}
    assert cls is not None
    needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    missing = [leaf.flag for leaf in members if leaf.path[1] in needed - given.keys()]
    if missing:
        there = ", ".join(leaf.flag for leaf in members if leaf.path[1] in given)
        raise ConfigurationError(f"{', '.join(missing)}: must be given with {there}")
    return cls(**given)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _file(path: Path, settings: type) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--{CONFIG}: {path}: cannot be read: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"--{CONFIG}: {path}: must be a mapping of options to values")
    known = [leaf.said.name for leaf in leaves(settings) if not leaf.said.inner]
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"--{CONFIG}: {path}: {key}: no such option{hint}")
    return document


def _read(leaf: Leaf, source: str, given: Any) -> Any:
    """What was given, as the option's type."""
    if leaf.repeats:
        if not isinstance(given, list):
            given = [given]
        return tuple(_one(leaf, source, one) for one in given)
    return _one(leaf, source, given)


def _one(leaf: Leaf, source: str, given: Any) -> Any:
    if leaf.kind is bool:
        truth = given if isinstance(given, bool) else _TRUTHS.get(str(given).lower())
        if truth is None:
            raise ConfigurationError(f"{source}: must be true or false, not {given!r}")
        return truth
    if isinstance(given, (bool, list, dict)) or given is None:
        raise ConfigurationError(f"{source}: must be {_NAMES[leaf.kind]}, not {given!r}")
    text = str(given)
    if leaf.said.read:
        return leaf.said.read(source, text)
    try:
        return leaf.kind(text)
    except ValueError:
        raise ConfigurationError(f"{source}: must be {_NAMES[leaf.kind]}, not {text!r}") from None


_NAMES = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
