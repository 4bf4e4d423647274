"""The distributions: one version, each package in one of them, and each installs what it imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import environment
import pytest
import yaml
from environment import DISTRIBUTIONS, ROOT

OURS = {folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for folder in DISTRIBUTIONS}
# With torch, in the version that it was built for.
BROUGHT = {"triton"}
NAMES = {folder: document["project"]["name"] for folder, document in OURS.items()}


def packages(folder: str) -> Iterator[Path]:
    """The top packages of a distribution."""
    find = OURS[folder]["tool"]["setuptools"]["packages"]["find"]
    for where in find.get("where", ["."]):
        for pattern in find["include"]:
            yield from (
                path for path in (ROOT / folder / where).resolve().glob(pattern) if (path / "__init__.py").exists()
            )


PLACES = {path.name: folder for folder in DISTRIBUTIONS for path in packages(folder)}


def named(requirement: str) -> str:
    """The distribution that a requirement names."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def needed(folder: str, extras: Collection[str] | None = None) -> set[str]:
    """What a distribution asks for, with extras (None is all), and what those of ours that it asks for do."""
    project: dict[str, Any] = OURS[folder]["project"]
    optional = project.get("optional-dependencies", {})
    chosen = optional if extras is None else extras
    lines = [*project["dependencies"], *(line for extra in chosen for line in optional[extra])]
    wanted = {named(line) for line in lines}
    for line in lines:
        for other, name in NAMES.items():
            if named(line) == name:
                found = re.search(r"\[(.*)\]", line)
                wanted |= needed(other, found[1].split(",") if found else ())
    return wanted


@cache
def brings() -> Mapping[str, Sequence[str]]:
    """The distributions that bring each module: it reads the lists of files of all that is installed."""
    return metadata.packages_distributions()


def test_there_is_one_version() -> None:
    (version,) = {document["project"]["version"] for document in OURS.values()}
    chart = yaml.safe_load((ROOT / "deploy/helm/sparsity-router/Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {version}
    lines = [
        line
        for folder in DISTRIBUTIONS
        for line in re.findall(r'"(sparsity-[^"]*)"', (ROOT / folder / "pyproject.toml").read_text())
    ]
    assert {line.partition("==")[2] for line in lines if line not in NAMES.values()} == {version}
    assert {metadata.version(name) for name in NAMES.values()} == {version}


def test_every_package_is_in_one_distribution() -> None:
    found = [path.name for folder in DISTRIBUTIONS for path in packages(folder)]
    assert sorted(found) == sorted(set(found))
    laid_out = {path.parent.name for path in ROOT.glob("*/spars*/__init__.py")}
    assert set(found) == laid_out


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_a_distribution_asks_for_what_it_imports(folder: str) -> None:
    modules: set[str] = set()
    for package in packages(folder):
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.split(".")[0])
    asked = needed(folder) | {NAMES[folder]}
    ours = {NAMES[PLACES[name]] for name in modules & PLACES.keys()}
    assert ours <= asked
    for name in sorted(modules - PLACES.keys() - sys.stdlib_module_names - BROUGHT):
        assert {named(one) for one in brings().get(name, ())} & asked, f"{name} is not asked for"


def test_the_client_asks_for_little() -> None:
    assert needed("client") == {"googleapis-common-protos", "grpcio", "opentelemetry-api", "protobuf"}


def test_every_requirement_is_pinned() -> None:
    pinned = {named(line) for line in (ROOT / "constraints.txt").read_text().split()}
    assert {named(line) for line in environment.requirements(environment.WHOLE)} - {"pip"} <= pinned
