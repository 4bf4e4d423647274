"""A release: one version everywhere, and a workflow that asks for what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, GOLDEN, examples, run
from release import PLACES, ROOT, main, notes, version, versions, write, write_registry
from support.deploy.rendered import documents

WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for place in PLACES:
        (tmp_path / place.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place.file, tmp_path / place.file)
    return tmp_path


def test_versions_move_together(copy: Path) -> None:
    assert version(copy) == version()
    write("7.8.9", copy)
    moved = {found for place, found in versions(copy) if place.file != "CHANGELOG.md"}
    assert moved == {"7.8.9"}
    # Nothing stays behind: no file says the old one of anything of ours.
    for file in {place.file for place in PLACES} - {"CHANGELOG.md"}:
        assert not re.search(rf"sparsity[\w\[\],-]*[:= ]+{re.escape(version())}", (copy / file).read_text()), file
    with pytest.raises(SystemExit, match=r"versions differ(?s:.*)CHANGELOG.md"):
        version(copy)
    changelog = copy / "CHANGELOG.md"
    changelog.write_text(
        changelog.read_text().replace(f"## {version()}", "## 7.8.9 (2027-01-01)\n\n- Words.\n\n## 0.1.0")
    )
    assert version(copy) == "7.8.9"
    assert notes("7.8.9", copy) == "- Words."


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_one_that_stays_behind_is_told(copy: Path, place: int) -> None:
    file = copy / PLACES[place].file
    file.write_text(PLACES[place].pattern().sub("0.0.9", file.read_text(), count=1))
    with pytest.raises(SystemExit, match=re.escape(PLACES[place].file)):
        version(copy)


def test_a_tag_of_another_version_is_not_released() -> None:
    with pytest.raises(SystemExit, match=r"the tag is v9\.9\.9"):
        main(["check", "v9.9.9"])
    assert notes(version())


def test_the_chart_of_a_release_asks_for_its_images(tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    write_registry("ghcr.io/team", chart / "Chart.yaml")

    def images(example: str, *settings: str) -> set[str]:
        values = CHART / "examples" / f"{example}.yaml"
        return set(re.findall(r"(?m)^ *image: (.*)$", run("template", "r", str(chart), "-f", str(values), *settings)))

    assert images("trial") == {f"ghcr.io/team/sparsity-{name}:{version()}" for name in ("router", "worker")}
    # Not what is named whole, though what is not beside it; not those of others, nor where values name a mirror.
    router, worker = sorted(images("tls"), key=lambda image: "sparsity-worker" in image)
    assert (router.partition("@")[0], worker) == (
        "registry.example.com/sparsity-router",
        f"ghcr.io/team/sparsity-worker:{version()}",
    )
    others = images("model", "--set", "model.source=s3://models/a", "--set", "model.download.secretName=s")
    assert {each.partition("/")[0] for each in others} == {"ghcr.io", "docker.io"}
    assert {each.partition("/")[0] for each in images("trial", "--set", "global.imageRegistry=mirror")} == {"mirror"}
    with pytest.raises(SystemExit, match="0 places for a registry"):
        write_registry("ghcr.io/team", chart / "Chart.yaml")
    packed = next(step["run"] for step in steps() if "helm package" in step.get("run", ""))
    assert packed.index("release.py registry") < packed.index("helm package")


def steps() -> list[dict[str, Any]]:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_workflow_asks_for_files_that_there_are() -> None:
    said = " ".join(step.get("run", "") for step in steps())
    files = set(re.findall(r"(?:deploy|tests)/[\w./-]+", said))
    assert len(files) >= 4
    for file in files:
        assert (ROOT / file).exists(), file
    for name in ("router", "worker"):
        assert (ROOT / "deploy" / "docker" / f"{name}.Dockerfile").exists()


def test_the_log_of_a_test_is_there_when_it_is_asked_for() -> None:
    """Helm 3 deletes what succeeded before `--logs` reads it, and ends with 1 (helm/helm#9098)."""
    asked = [step["run"] for step in steps() if "helm test" in step.get("run", "")]
    assert asked
    assert all(re.search(r"helm test \S+ --logs", run) for run in asked)
    annotations = [each["metadata"].get("annotations", {}) for each in documents("echo")]
    tests = [each for each in annotations if each.get("helm.sh/hook") == "test"]
    assert tests == [{"helm.sh/hook": "test", "helm.sh/hook-delete-policy": "before-hook-creation"}]


def test_the_workflows_server_is_asked_for_every_example_of_its_own_kinds() -> None:
    (run,) = (step["run"] for step in steps() if "--dry-run=server" in step.get("run", ""))
    (named,) = re.findall(r"examples/\{([\w,-]+)\}\.yaml", run)
    golden = {path.stem: list(yaml.safe_load_all((GOLDEN / path.name).read_text())) for path in examples()}
    kinds = {name: {each["apiVersion"].rpartition("/")[0] for each in found if each} for name, found in golden.items()}
    core = {"", "apps", "autoscaling", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"}
    assert set(named.split(",")) == {name for name, groups in kinds.items() if groups <= core}


def test_what_needs_more_than_lint_has_is_run_where_it_is_to_be_had() -> None:
    """Alerts and what scaling asks wherever a release is made; a server's own checks of objects where one is named."""
    assert any("make alerts" in step.get("run", "") for step in steps())
    for given, asked in ((), False), (("KUBECTL=kubectl --context trial",), True):
        make = ["make", "-n", "style", *given]
        said = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
        assert ("server_side.py kubectl --context trial" in said.stdout) is asked


def test_what_is_pushed_is_signed_and_has_an_sbom() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    pushing = {
        name
        for name, job in jobs.items()
        if any(" --push " in s.get("run", "") or "helm push" in s.get("run", "") for s in job["steps"])
    }
    assert pushing == {"images", "chart"}
    for name in pushing:
        job = jobs[name]
        assert job["permissions"]["id-token"] == "write"
        (sign,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/attest"))
        assert sign["with"]["push-to-registry"]
    assert any("--sbom=true" in step.get("run", "") for step in jobs["images"]["steps"])
    assert jobs["images"]["if"] == "github.ref_type == 'tag'"
    assert "images" in jobs["chart"]["needs"]
    assert "cluster" in jobs["images"]["needs"]
