"""Checks the Helm chart: lint, every example on every Kubernetes version, every object by its schema, golden renders.

`python deploy/tools/charts.py` checks; with --write it writes the golden renders anew.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from helm import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "sparsity-router"
GOLDEN = ROOT / "tests" / "deploy" / "golden"
SCHEMAS = ROOT / "deploy" / "tools" / "schemas"
KUBERNETES = ("1.31", "1.34", "1.36")
# A fresh key in each rendering where no Secret is named.
_KEY = re.compile(r"(?m)^(  lease\.key: ).*$")


def examples() -> list[Path]:
    """The value files."""
    return sorted((CHART / "examples").glob("*.yaml"))


def run(*arguments: str) -> str:
    """Helm's output.

    Raises:
        SystemExit: with Helm's own words when it fails.
    """
    result = subprocess.run([str(helm()), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"helm {' '.join(arguments)}\n{result.stdout}{result.stderr}")
    return result.stdout


def render(values: Path, version: str = KUBERNETES[-1]) -> str:
    """The manifests of the release `r` in the namespace `ns`."""
    rendered = run("template", "r", str(CHART), "--namespace", "ns", "--kube-version", version, "-f", str(values))
    return _KEY.sub(r"\1RANDOM", rendered)


def validate(document: dict[str, Any], version: str) -> None:
    """Checks one object strictly: a field that the API does not know is a mistake.

    The schemas of other people's kinds, in deploy/tools/schemas, know the fields that the chart uses.

    Raises:
        SystemExit: naming the object and the field.
    """
    kind = document["kind"]
    own = SCHEMAS / f"{kind.lower()}.json"
    try:
        if own.exists():
            jsonschema.validate(document, json.loads(own.read_text()))
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        where = "/".join(map(str, error.path))
        sys.exit(f"{kind} {document['metadata']['name']} on {version}: {where}: {error.message}")


def main() -> None:
    """Checks everything, or writes the golden renders."""
    count = 0
    for values in examples():
        golden = GOLDEN / values.name
        if "--write" in sys.argv:
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(render(values))
            continue
        run("lint", str(CHART), "--strict", "-f", str(values))
        for version in KUBERNETES:
            rendered = render(values, version)
            for document in yaml.safe_load_all(rendered):
                if document:
                    validate(document, version)
                    count += 1
        if rendered != golden.read_text():
            sys.exit(f"{golden.relative_to(ROOT)} is stale; run make charts and read the difference")
    print(f"chart: {len(examples())} value files, Kubernetes {', '.join(KUBERNETES)}, {count} objects checked")


if __name__ == "__main__":
    main()
