"""Profiles by name or path, and calibrated ones written down."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from sparsity_rpc.errors import ConfigurationError
from sparsity_worker.profiles.profile import Profile, load_profile

from sparsity_quality.calibration.calibrate import Calibrated
from sparsity_quality.subjects.model import LocalModel
from sparsity_quality.tasks import corpus


def load(names: list[str]) -> dict[str, Profile]:
    """Profiles by their names.

    Raises:
        ConfigurationError: when one cannot be read, or two have the same name.
    """
    found: dict[str, Profile] = {}
    for name in names:
        profile = load_profile(name)
        if profile.name in found:
            raise ConfigurationError(f"--profile: two profiles are called {profile.name}")
        found[profile.name] = profile
    return found


def write(path: Path, name: str, base: Profile, calibrated: Calibrated, model: LocalModel, length: int) -> Profile:
    """Writes a calibrated profile as YAML that a worker can load.

    Raises:
        ConfigurationError: when it cannot be written.
    """
    attention = calibrated.attention
    profile = Profile(
        name=name,
        version=base.version + 1 if name == base.name else 1,
        tier=base.tier,
        provenance={
            "model": model.path.name,
            "base": base.label,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "length": length,
            "text": f"sparsity_quality.tasks.corpus {corpus.fingerprint()}",
            "versions": {package: metadata.version(package) for package in ("torch", "transformers")},
            **calibrated.report,
        },
        prefill=attention.prefill,
        decode=attention.decode,
        dense_layers=attention.dense_layers,
        layers=attention.layers,
        block_size=attention.block_size,
        sub_block=attention.sub_block,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_HEAD.format(name=name, model=model.path.name) + _yaml(profile.to_document()), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--out: cannot write {path}: {error.strerror}") from error
    return load_profile(str(path))


_HEAD = "# {name}: learned from {model} by `sparsity calibrate`; docs/quality.md says how.\n"


class _Dumper(yaml.SafeDumper):
    """Short lists and mappings on one line."""


def _sequence(dumper: yaml.SafeDumper, data: Any) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _mapping(dumper: yaml.SafeDumper, data: dict[Any, Any]) -> yaml.Node:
    nested = any(isinstance(value, dict) for value in data.values())
    flow = not nested and ("thresholds" in data or "budget" in data) and "sink" not in data
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=flow)


_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(dict, _mapping)


def _yaml(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110))
