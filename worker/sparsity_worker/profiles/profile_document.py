"""YAML documents of profiles: where they lie, and what every kind of them has."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import SPARSE


class Named:
    """What every kind of profile is called."""

    __slots__ = ()

    name: str
    version: int

    @property
    def label(self) -> str:
        """Name and version, as reports carry it."""
        return f"{self.name}@{self.version}"


def shipped_profiles() -> list[str]:
    """Names of the profiles in the package."""
    folder = resources.files("sparsity_worker.profiles")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_document(name_or_path: str) -> object:
    """The parsed document of a shipped profile by name, or of any profile by path.

    Raises:
        ConfigurationError: when there is none, or it is not YAML.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"profile: cannot read {path}: {error.strerror}") from error
    elif name_or_path in shipped_profiles():
        text = resources.files("sparsity_worker.profiles").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        known = ", ".join(shipped_profiles())
        raise ConfigurationError(f"profile: {name_or_path!r} is neither a .yaml file nor one of {known}")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name_or_path}: not valid YAML: {error}") from error


def schema_of(document: object) -> object:
    """What the document says that it is; None when it says nothing."""
    return document.get("schema") if isinstance(document, dict) else None


def checked(
    document: object, schema: str, kind: type, optional: Collection[str], numbers: Collection[str], source: str
) -> Mapping[str, Any]:
    """The document's values by field, without the schema.

    Args:
        document: as parsed from YAML.
        schema: what it must say that it is.
        kind: the dataclass whose fields it may have.
        optional: of those, the ones that may be missing.
        numbers: the ones that are whole numbers of at least 1.
        source: the document's name, for errors.

    Raises:
        ConfigurationError: naming ``source``, the field and what it must be.
    """
    if not isinstance(document, dict) or schema_of(document) != schema:
        raise ConfigurationError(f"{source}: schema: must be {schema!r}, not {schema_of(document)!r}")
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {key: value for key, value in document.items() if key != "schema"}
    for key in sorted((values.keys() | optional) ^ fields):
        problem = "is missing" if key in fields else f"is not a field; fields are {', '.join(sorted(fields))}"
        raise ConfigurationError(f"{source}: {key}: {problem}")
    if values["tier"] not in SPARSE:
        raise ConfigurationError(f"{source}: tier: must be one of {', '.join(SPARSE)}, not {values['tier']!r}")
    for key in numbers:
        if not isinstance(values[key], int) or isinstance(values[key], bool) or values[key] < 1:
            raise ConfigurationError(f"{source}: {key}: must be a whole number of at least 1, not {values[key]!r}")
    return values
