"""A sparsity profile: what a tier means for one family of models, read from YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparsity.errors import ConfigurationError

SCHEMA = "sparsity.profile/v1"
TIERS = ("moderate", "aggressive")
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True, slots=True)
class Profile:
    """The numbers behind a sparse tier.

    Attributes:
        name: the profile's name.
        version: raised with every change of its numbers.
        tier: `moderate` or `aggressive`.
        block_size: keys a block, equal to the KV page size, tokens.
        sub_block: keys behind one mean of the block scores, tokens; divides block_size.
        dense_layers: layers that always attend densely.
        prefill: block-sparse prefill.
        decode: sparse paged decode.
    """

    name: str
    version: int
    tier: str
    block_size: int
    sub_block: int
    dense_layers: frozenset[int]
    prefill: PrefillConfig
    decode: DecodeConfig

    @property
    def label(self) -> str:
        """Name and version, as reports carry it."""
        return f"{self.name}@{self.version}"

    def to_document(self) -> dict[str, Any]:
        """The profile as the mapping that :func:`parse_profile` reads."""
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        document["dense_layers"] = sorted(self.dense_layers)
        return document


def parse_profile(document: object, source: str) -> Profile:
    """Reads a profile from a parsed YAML document.

    Raises:
        ConfigurationError: naming ``source``, the field and what it must be.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigurationError(f"{source}: schema: must be {SCHEMA!r}")
    fields = {field.name for field in dataclasses.fields(Profile)}
    values = {key: value for key, value in document.items() if key != "schema"}
    for key in sorted(values.keys() ^ fields):
        problem = "is missing" if key in fields else f"is not a field; fields are {', '.join(sorted(fields))}"
        raise ConfigurationError(f"{source}: {key}: {problem}")
    if values["tier"] not in TIERS:
        raise ConfigurationError(f"{source}: tier: must be one of {', '.join(TIERS)}, not {values['tier']!r}")
    for key in ("version", "block_size", "sub_block"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise ConfigurationError(f"{source}: {key}: must be a whole number of at least 1, not {values[key]!r}")
    if values["block_size"] % values["sub_block"]:
        raise ConfigurationError(f"{source}: sub_block: {values['sub_block']} must divide block_size")
    layers = values["dense_layers"]
    if not isinstance(layers, list) or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise ConfigurationError(f"{source}: dense_layers: must be a list of layer numbers from 0")
    return Profile(
        name=str(values["name"]),
        version=values["version"],
        tier=values["tier"],
        block_size=values["block_size"],
        sub_block=values["sub_block"],
        dense_layers=frozenset(layers),
        prefill=_section(PrefillConfig, values["prefill"], f"{source}: prefill"),
        decode=_section(DecodeConfig, values["decode"], f"{source}: decode"),
    )


def _section(kind: type, values: object, source: str) -> Any:
    names = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source}: must be a mapping of {', '.join(names)}")
    for key, value in values.items():
        if key not in names:
            raise ConfigurationError(f"{source}.{key}: is not a field; fields are {', '.join(names)}")
        wanted = _KINDS[str(names[key].type)]
        if not isinstance(value, wanted) or (wanted != (bool,) and isinstance(value, bool)):
            raise ConfigurationError(f"{source}.{key}: must be of type {names[key].type}, not {value!r}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{source}.{error}") from error


def shipped_profiles() -> list[str]:
    """Names of the profiles in the package."""
    folder = resources.files("sparsity_worker.profiles")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str) -> Profile:
    """Loads a shipped profile by name, or any profile by path.

    Raises:
        ConfigurationError: when there is none, or it is not valid.
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
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name_or_path}: not valid YAML: {error}") from error
    return parse_profile(document, name_or_path)
