"""Has a real API server check every object that the value files render, by its own validation and admission.

`python deploy/tools/server_side.py kubectl --context kind-kind` renders for the server's version and creates all of it
as a dry run of the server, strictly, in the context's namespace (kubectl's `--namespace` would forbid Roles in others):
nothing is made. The server must know the kinds of the Gateway API and its inference extension, cert-manager, KEDA,
LeaderWorkerSet and the Prometheus operator, the priority class `inference`, and the namespaces `llm` and `other`, where
routers look for workers. What a namespace that holds pods to a standard warns of is told.
"""

from __future__ import annotations

import json
import subprocess
import sys

import yaml
from charts import manifest, value_files


def asked(kubectl: list[str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """What the server says."""
    return subprocess.run([*kubectl, *arguments], input=given, capture_output=True, text=True, check=False)


def main(kubectl: list[str]) -> None:
    """Asks for every value file, and counts.

    Raises:
        SystemExit: with the server's words to what it refuses.
    """
    if not kubectl:
        sys.exit(__doc__)
    answer = asked(kubectl, "version", "--output=json")
    if answer.returncode:
        sys.exit(answer.stderr)
    server = json.loads(answer.stdout)["serverVersion"]["gitVersion"].removeprefix("v")
    count, refused = 0, False
    for values in value_files():
        rendered = manifest(values, server)
        told = asked(kubectl, "create", "--dry-run=server", "--validate=strict", "--filename=-", given=rendered)
        if told.stderr:
            print(f"{values.name}:\n{told.stderr}", file=sys.stderr)
        taken = told.stdout.count("(server dry run)")
        refused |= taken != sum(1 for document in yaml.safe_load_all(rendered) if document)
        count += taken
    if refused:
        sys.exit("the server does not take every object")
    print(f"Kubernetes {server} takes all {count} objects of {len(value_files())} value files")


if __name__ == "__main__":
    main(sys.argv[1:])
