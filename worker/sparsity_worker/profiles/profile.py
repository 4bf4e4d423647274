"""A sparsity profile: what a tier means for one family of models, read from YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sparse_kernels.config import DecodeConfig, PrefillConfig
from sparse_kernels.schedule import LayerSchedule, SparseAttention
from sparsity_rpc.errors import ConfigurationError
from sparsity_rpc.tiers import DENSE

from sparsity_worker.keys import BACKEND
from sparsity_worker.profiles.profile_document import Named, checked, read_document

SCHEMA = "sparsity.profile/v1"
_OPTIONAL = {"decode_from", "layers", "provenance"}
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Named, SparseAttention):
    """The numbers behind a sparse tier.

    Attributes:
        name: the profile's name.
        version: raised with every change of its numbers.
        tier: `moderate` or `aggressive`.
        decode_from: by sequences that decode at once, the tokens from which sparse decode is faster than dense, as
            measured on the device; a number between two takes the smaller's. Beside ``decode.sparse_from``.
        provenance: where the numbers come from, for people to read.
    """

    backend: ClassVar[str] = BACKEND
    densifies: ClassVar[bool] = True

    name: str
    version: int
    tier: str
    decode_from: Mapping[int, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether it attends everything in every layer, as the dense tier does."""
        return self.tier == DENSE

    @property
    def page_size(self) -> int:
        """Tokens a KV page."""
        return self.block_size

    @property
    def sparse_from(self) -> int:
        """Prompts of fewer tokens are attended densely."""
        return self.prefill.sparse_from

    @property
    def probe_tokens(self) -> int:
        """Length of a prompt that the start-up probe can see pruned: twice what is kept in any case."""
        return 2 * (self.prefill.sink + self.prefill.window + 2 * self.prefill.query_tile)

    @property
    def model_overrides(self) -> Mapping[str, Any]:
        """What the model's own config says otherwise under this profile: nothing."""
        return {}

    def to_document(self) -> dict[str, Any]:
        """The profile as the mapping that :func:`parse_profile` reads."""
        document: dict[str, Any] = {"schema": SCHEMA, "name": self.name, "version": self.version, "tier": self.tier}
        document |= {"block_size": self.block_size, "sub_block": self.sub_block}
        document["dense_layers"] = sorted(self.dense_layers)
        document["prefill"], document["decode"] = dataclasses.asdict(self.prefill), dataclasses.asdict(self.decode)
        # Of heads only `layers` speaks.
        del document["prefill"]["head_thresholds"]
        if self.layers:
            document["layers"] = {number: _layer_document(layer) for number, layer in sorted(self.layers.items())}
        if self.decode_from:
            document["decode_from"] = dict(sorted(self.decode_from.items()))
        if self.provenance:
            document["provenance"] = dict(self.provenance)
        return document


def parse_profile(document: object, source: str) -> Profile:
    """Reads a profile from a parsed YAML document.

    Raises:
        ConfigurationError: naming ``source``, the field and what it must be.
    """
    values = checked(document, SCHEMA, Profile, _OPTIONAL, ("version", "block_size", "sub_block"), source)
    if values["block_size"] % values["sub_block"]:
        raise ConfigurationError(f"{source}: sub_block: {values['sub_block']} must divide block_size")
    layers = values["dense_layers"]
    if not isinstance(layers, list) or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise ConfigurationError(f"{source}: dense_layers: must be a list of layer numbers from 0")
    profile = Profile(
        name=str(values["name"]),
        version=values["version"],
        tier=values["tier"],
        block_size=values["block_size"],
        sub_block=values["sub_block"],
        dense_layers=frozenset(layers),
        layers=_layers(values.get("layers", {}), f"{source}: layers"),
        decode_from=_decode_from(values.get("decode_from", {}), f"{source}: decode_from"),
        provenance=values.get("provenance", {}),
        prefill=_section(PrefillConfig, values["prefill"], f"{source}: prefill"),
        decode=_section(DecodeConfig, values["decode"], f"{source}: decode"),
    )
    for number in profile.layers:
        try:
            profile.decode_at(number)
        except ValueError as error:
            raise ConfigurationError(f"{source}: layers.{number}.{error}") from error
    return profile


def _decode_from(values: object, source: str) -> dict[int, int]:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source}: must be a mapping of numbers of sequences to tokens")
    for key, value in values.items():
        # JSON, by which the document reaches the engine, knows no numbers as keys.
        if not str(key).isdecimal() or not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigurationError(f"{source}.{key}: must be a number of sequences with a whole number of tokens")
    return {int(key): value for key, value in values.items()}


def _layer_document(layer: LayerSchedule) -> dict[str, Any]:
    document: dict[str, Any] = {"thresholds": list(layer.thresholds)} if layer.thresholds else {}
    return document if layer.budget is None else document | {"budget": layer.budget}


def _layers(values: object, source: str) -> dict[int, LayerSchedule]:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source}: must be a mapping of layer numbers")
    found = {}
    for number, own in values.items():
        at = f"{source}.{number}"
        if not str(number).isdecimal() or not isinstance(own, dict) or own.keys() - {"thresholds", "budget"}:
            raise ConfigurationError(f"{at}: must be a layer number with thresholds and budget")
        numbers = own.get("thresholds", [])
        if not isinstance(numbers, list) or not all(isinstance(each, (int, float)) for each in numbers):
            raise ConfigurationError(f"{at}.thresholds: must be a list of numbers, one for each KV head")
        if not isinstance(own.get("budget", 1), int):
            raise ConfigurationError(f"{at}.budget: must be a whole number of tokens")
        try:
            found[int(number)] = LayerSchedule(tuple(map(float, numbers)), own.get("budget"))
        except ValueError as error:
            raise ConfigurationError(f"{at}.{error}") from error
    return found


def _section(kind: type, values: object, source: str) -> Any:
    names = {field.name: field for field in dataclasses.fields(kind) if str(field.type) in _KINDS}
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


def load_profile(name_or_path: str) -> Profile:
    """Loads a shipped profile by name, or any profile by path.

    Raises:
        ConfigurationError: when there is none, or it is not valid.
    """
    return parse_profile(read_document(name_or_path), name_or_path)
