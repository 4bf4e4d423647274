"""Checks the Helm chart: its value files by every Helm and Kubernetes, each object by its schema, golden renders.

`python deploy/tools/charts.py` checks; with --newest by the newest Helm and Kubernetes alone, and without
the wrong values, in a tenth of the time; with --write it writes the golden renders anew.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import values_schema
import yaml
from helm import NEWEST, PACKAGES, helm
from kubernetes_validate import utils

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "sparsity-router"
GOLDEN = ROOT / "tests" / "deploy" / "golden"
VALUES = ROOT / "tests" / "deploy" / "values"
REFUSED = ROOT / "tests" / "deploy" / "refused.yaml"
SCHEMAS = ROOT / "deploy" / "tools" / "schemas"
KUBERNETES = ("1.31", "1.34", "1.36")
# Helm's processes side by side.
_AT_ONCE = 2
# A fresh key in each rendering where no Secret is named.
_KEY = re.compile(r"(?m)^(  lease\.key: ).*$")


def examples() -> list[Path]:
    """The value files that come with the chart, whose renderings are kept."""
    return sorted((CHART / "examples").glob("*.yaml"))


def value_files() -> list[Path]:
    """Those, and what else must render."""
    return [*examples(), *sorted(VALUES.glob("*.yaml"))]


def refusals() -> list[dict[str, Any]]:
    """Values that must not render: `set`, over the trial's, and what Helm `says`."""
    entries: list[dict[str, Any]] = yaml.safe_load(REFUSED.read_text())
    return entries


def run(*arguments: str, helm_version: str = NEWEST) -> str:
    """Helm's output.

    Raises:
        SystemExit: with Helm's own words when it fails.
    """
    command = [str(helm(helm_version)), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"helm {helm_version} {' '.join(arguments)}\n{result.stdout}{result.stderr}")
    return result.stdout


def render(values: Path, version: str = KUBERNETES[-1], helm_version: str = NEWEST) -> str:
    """The manifests of the release `r` in the namespace `ns`, the same each time."""
    return _KEY.sub(r"\1RANDOM", manifest(values, version, helm_version))


def manifest(values: Path, version: str, helm_version: str = NEWEST) -> str:
    """As Helm writes them, with a key of its own each time."""
    command = ("template", "r", str(CHART), "--namespace", "ns", "--kube-version", version, "-f", str(values))
    return run(*command, helm_version=helm_version)


def refusal(program: Path, settings: list[str], example: str | None = "trial") -> str:
    """What Helm says to values that must not render.

    Raises:
        SystemExit: when they do.
    """
    values = ["-f", str(CHART / "examples" / f"{example}.yaml")] if example else []
    sets = [word for setting in settings for word in ("--set-json", setting)]
    command = [str(program), "template", "r", str(CHART), *values, *sets]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.returncode:
        sys.exit(f"{' '.join(settings)}: must not render")
    return result.stderr


def refuse_all(helm_version: str) -> int:
    """Tries every wrong value, and counts them.

    Raises:
        SystemExit: when one renders, or is refused for something else.
    """
    program, entries = helm(helm_version), refusals()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        told = list(pool.map(lambda entry: refusal(program, entry["set"]), entries))
    for entry, said in zip(entries, told, strict=True):
        if entry["says"] not in by_path(said):
            sys.exit(f"{' '.join(entry['set'])}: must be refused by {entry['says']!r}, not by\n{said}")
    return len(entries)


def by_path(said: str) -> str:
    """What Helm says in the words of one version: `router: unknown repicas`, `router.replicas: ...`."""
    said = re.sub(r"at '/([^']*)'", lambda match: match[1].replace("/", "."), said)
    return re.sub(r"[Aa]dditional propert(?:y|ies) '?([\w-]+)'? (?:is )?not allowed", r"unknown \1", said)


class _Once(yaml.CSafeLoader):
    """Takes no map that says a key twice, which YAML does not allow, and Flux refuses."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The map.

        Raises:
            ConstructorError: naming the key, and where it stands.
        """
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            keys.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read(written: str) -> list[dict[str, Any]]:
    """The objects that Helm wrote.

    Raises:
        ConstructorError: where one says a key twice.
    """
    return [document for document in yaml.load_all(written, Loader=_Once) if document]


def validate(document: dict[str, Any], version: str) -> None:
    """Checks one object strictly: a field that the API does not know is a mistake.

    The schemas of other people's kinds, in deploy/tools/schemas, know the fields that the chart uses; pod templates in
    them are Kubernetes' own.

    Raises:
        SystemExit: naming the object and the field.
    """
    kind = document["kind"]
    own = SCHEMAS / f"{kind.lower()}.json"
    try:
        if own.exists():
            jsonschema.validate(document, json.loads(own.read_text()))
            for template in pod_templates(document):
                kubernetes_validate.validate(template, version, strict=True)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        where = "/".join(map(str, error.path))
        sys.exit(f"{kind} {document['metadata']['name']} on {version}: {where}: {error.message}")


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that an object of another API holds, as the kind that Kubernetes has for one alone."""
    if document["kind"] == "LeaderWorkerSet":
        group = document["spec"]["leaderWorkerTemplate"]
        for name in ("leaderTemplate", "workerTemplate"):
            yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group[name]}


# It reads all definitions of a Kubernetes, two megabytes, for every object.
utils.schema_contents = cache(utils.schema_contents)


@cache
def validate_once(document: str, version: str) -> None:
    """As :func:`validate`, of an object as JSON: most are the same whatever Helm and values render them."""
    validate(json.loads(document), version)


def manifests(values: Path, helm_version: str, kubernetes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Checks a value file, and gives what it renders to for each Kubernetes."""
    run("lint", str(CHART), "--strict", "-f", str(values), helm_version=helm_version)
    for version in kubernetes:
        yield version, render(values, version, helm_version)


def package() -> str:
    """Packs the chart as a release does, and gives the file's name.

    Raises:
        SystemExit: with Helm's own words when it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        run("package", str(CHART), "--destination", folder)
        (packed,) = Path(folder).glob("*.tgz")
        return packed.name


def _stale(file: Path, by: str = "") -> None:
    sys.exit(f"{file.relative_to(ROOT)} is stale{by}; run make charts and read the difference")


def main() -> None:
    """Checks everything, or writes the golden renders."""
    if "--write" in sys.argv:
        values_schema.FILE.write_text(values_schema.written())
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for values in examples():
            (GOLDEN / values.name).write_text(render(values))
        return
    if values_schema.FILE.read_text() != values_schema.written():
        _stale(values_schema.FILE)
    newest = "--newest" in sys.argv
    helms, kubernetes = ([NEWEST], KUBERNETES[-1:]) if newest else (list(PACKAGES), KUBERNETES)
    refused = 0 if newest else sum(map(refuse_all, helms))
    count, pairs = 0, list(product(value_files(), helms))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda pair: list(manifests(*pair, kubernetes)), pairs))
    for (values, helm_version), renderings in zip(pairs, found, strict=True):
        for version, rendered in renderings:
            for document in read(rendered):
                validate_once(json.dumps(document), version)
                count += 1
        golden = GOLDEN / values.name
        if values in examples() and rendered != golden.read_text():
            _stale(golden, f" by Helm {helm_version}")
    told = f"chart: {len(value_files())} value files, Helm {', '.join(helms)}, Kubernetes {', '.join(kubernetes)}"
    tried = "wrong values not tried" if newest else f"{refused} wrong values refused"
    print(f"{told}: {count} objects checked, {tried}; {package()} packed")


if __name__ == "__main__":
    main()
