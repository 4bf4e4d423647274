"""The version of a release, and every place that says it.

`python deploy/tools/release.py` holds all places to one version, with `check vX.Y.Z` also to the tag that is released;
`set X.Y.Z` writes them, and `notes` prints what CHANGELOG.md says of it. `registry PREFIX` has the chart that is packed
ask for the images that were pushed beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VERSION = r"[0-9]+\.[0-9]+\.[0-9]+"


class Place(NamedTuple):
    """Where a version stands: a file below the repository's root, and what stands around it."""

    file: str
    before: str
    after: str = ""

    def pattern(self) -> re.Pattern[str]:
        """Finds it, in the group `version`."""
        return re.compile(f"(?m)(?<={re.escape(self.before)})(?P<version>{VERSION})(?={re.escape(self.after)})")


IMAGES = ("router", "worker")
_CHART = "deploy/helm/sparsity-router/Chart.yaml"
PLACES = (
    *(
        Place(f"{folder}/pyproject.toml", '\nversion = "', '"')
        for folder in ("client", "serving", "worker", "router", "bench")
    ),
    # What they ask of each other.
    Place("serving/pyproject.toml", "sparsity-client=="),
    Place("worker/pyproject.toml", "sparsity-serving=="),
    Place("router/pyproject.toml", "sparsity-serving=="),
    Place("router/pyproject.toml", "sparsity-worker=="),
    Place("bench/pyproject.toml", "sparsity-router[embedded]=="),
    Place("bench/pyproject.toml", "sparsity-worker[quality,sglang]=="),
    Place(_CHART, "\nversion: "),
    Place(_CHART, "\nappVersion: "),
    *(Place(f"deploy/docker/{name}.Dockerfile", f"sparsity-{name}:") for name in IMAGES),
    *(Place("deploy/docker/compose.yaml", f"sparsity-{name}:") for name in IMAGES),
    *(Place("docs/kubernetes.md", f"sparsity-{name}:") for name in IMAGES),
    Place("docs/kubernetes.md", "--version "),
    Place("docs/clients.md", "sparsity-client "),
    Place("deploy/gitops/argocd.yaml", "targetRevision: "),
    Place("deploy/gitops/flux.yaml", 'semver: "', '"'),
    Place("CHANGELOG.md", "\n## "),
)


def versions(root: Path = ROOT) -> Iterator[tuple[Place, str]]:
    """Every place, and each version there; the changelog's is its newest.

    Raises:
        SystemExit: when a place has none.
    """
    for place in PLACES:
        found = [each["version"] for each in place.pattern().finditer((root / place.file).read_text())]
        if not found:
            sys.exit(f"{place.file}: no version after {place.before.strip()!r}")
        yield from ((place, each) for each in (found[:1] if place.file == "CHANGELOG.md" else found))


def version(root: Path = ROOT) -> str:
    """The one that all places say.

    Raises:
        SystemExit: when they differ.
    """
    found = list(versions(root))
    told = sorted({each for _, each in found})
    if len(told) > 1:
        lines = (f"  {each} in {place.file} after {place.before.strip()!r}" for place, each in found)
        sys.exit("versions differ, `python deploy/tools/release.py set X.Y.Z` writes them:\n" + "\n".join(lines))
    return told[0]


def write(wanted: str, root: Path = ROOT) -> None:
    """Writes a version at all places but the changelog, which wants words too."""
    for place in PLACES:
        if place.file != "CHANGELOG.md":
            file = root / place.file
            file.write_text(place.pattern().sub(wanted, file.read_text()))


def write_registry(prefix: str, chart: Path = ROOT / _CHART) -> None:
    """Writes where our own images are into a Chart.yaml, for values that name no registry.

    Raises:
        SystemExit: when the place is not found.
    """
    written, count = re.subn(r'(?m)^(  sparsity-router/registry: )""$', rf"\g<1>{prefix}", chart.read_text())
    if count != 1:
        sys.exit(f"{chart}: {count} places for a registry")
    chart.write_text(written)


def notes(wanted: str, root: Path = ROOT) -> str:
    """What the changelog says of a version."""
    text = (root / "CHANGELOG.md").read_text()
    found = re.search(rf"(?ms)^## {re.escape(wanted)}[^\n]*\n(.*?)(?=^## |\Z)", text)
    return found[1].strip() if found else ""


def main(arguments: list[str]) -> None:
    """Checks, writes or prints."""
    match arguments:
        case []:
            print(f"version {version()} in {len(PLACES)} places")
        case ["check", tag]:
            if tag != f"v{version()}":
                sys.exit(f"the tag is {tag}, and the version {version()}")
            if not notes(version()) or f"## {version()} (not released)" in (ROOT / "CHANGELOG.md").read_text():
                sys.exit(f"CHANGELOG.md: say what {version()} is, and when it was released")
            print(version())
        case ["set", wanted] if re.fullmatch(VERSION, wanted):
            write(wanted)
        case ["registry", prefix] if re.fullmatch(r"[a-z0-9._:/-]+", prefix):
            write_registry(prefix)
        case ["notes"]:
            print(notes(version()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
