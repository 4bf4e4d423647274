"""Policies as resources: a ConfigMap or a repository that routers follow, and what Argo CD and Flux make of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, KUBERNETES, ROOT, render, validate
from support.deploy.rendered import containers, documents, egress_ports, of_kind, pods, rendered
from support.routers.router_process import RouterProcess

GITOPS = ROOT / "deploy" / "gitops"
SPARSITY = Path(sys.executable).parent / "sparsity"


def mounted(folder: Path, files: dict[str, str], version: str) -> None:
    """Lays a ConfigMap's files out as a node does: links into a folder that is swapped whole."""
    data = folder / f"..{version}"
    data.mkdir(parents=True)
    for name, text in files.items():
        (data / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..swap").symlink_to(data.name)
    os.replace(folder / "..swap", folder / "..data")


def listed(address: str) -> str:
    return subprocess.run(
        [SPARSITY, "policy", "list", "--router", address], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def argument(found: list[dict[str, Any]], name: str) -> str:
    args = pods(found)["router"]["containers"][0]["args"]
    return str(args[args.index(name) + 1])


def test_a_policy_of_a_configmap_reaches_the_router_and_so_does_its_edit(tmp_path: Path) -> None:
    found = documents("folder")
    pod = pods(found)["router"]
    (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "policies")
    assert argument(found, "--policy-dir") == mount["mountPath"]
    (volume,) = (each for each in pod["volumes"] if each["name"] == "policies")
    files = of_kind(found, "ConfigMap")[volume["configMap"]["name"]]["data"]
    folder = tmp_path / "policies"
    mounted(folder, files, "1")
    with RouterProcess(tmp_path, "--policy-dir", str(folder)) as router:
        told = listed(router.address)
        assert "contracts" in told
        assert "elevated" not in told
        edited = rendered('policies.documents.chat.risk="elevated"', example="folder")
        mounted(folder, of_kind(edited, "ConfigMap")[volume["configMap"]["name"]]["data"], "2")
        deadline = time.monotonic() + 20
        while "elevated" not in listed(router.address):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_no_store_is_needed_and_nothing_is_written_to_one() -> None:
    found = documents("folder")
    assert set(of_kind(found, "Job")) == {"r-sparsity-router-policies-check"}, "mistakes end an upgrade here as well"
    assert not [each for each in pods(found)["router"]["containers"][0]["env"] if "REDIS" in each["name"]]
    assert egress_ports(found) == []
    assert not of_kind(found, "StatefulSet")


def test_a_repository_is_there_before_the_router_starts() -> None:
    found = documents("repository")
    pod = pods(found)["router"]
    (sync,) = pod["initContainers"]
    assert sync["restartPolicy"] == "Always"
    assert sync["image"] == "registry.k8s.io/git-sync/git-sync:v4.4.2"
    assert sync["startupProbe"]["httpGet"]["port"] in {port["name"] for port in sync["ports"]}
    said = dict(word.removeprefix("--").split("=", 1) for word in sync["args"])
    assert (said["repo"], said["ref"]) == ("ssh://git@git.example.com:2222/team/policies", "production")
    assert argument(found, "--policy-dir") == f"{said['root']}/{said['link']}/domains"
    shared = [each["volumeMounts"] for each in (sync, pod["containers"][0])]
    assert [[each["mountPath"] for each in mounts if each["name"] == "git"] for mounts in shared] == [["/git"]] * 2
    assert said["ssh-key-file"].startswith("/etc/sparsity/git/")
    assert 2222 in egress_ports(found)
    assert 6379 in egress_ports(found), "the store carries overrides"
    https = rendered(
        'policies.git={"repository":"https://git.example.com/p.git","secretName":"git"}',
        "policies.documents=null",
        example="folder",
    )
    (sync,) = pods(https)["router"]["initContainers"]
    assert {each["name"]: each["valueFrom"]["secretKeyRef"]["key"] for each in sync["env"] if "valueFrom" in each} == {
        "GITSYNC_USERNAME": "username",
        "GITSYNC_PASSWORD": "password",
    }
    assert argument(https, "--policy-dir") == "/git/current"
    assert egress_ports(https) == [443]


def objects(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((GITOPS / name).read_text()) if document]


def released(name: str) -> dict[str, Any]:
    """The values that Argo CD or Flux would hand to the chart."""
    kinds = {each["kind"]: each["spec"] for each in objects(name)}
    if "Application" in kinds:
        return dict(kinds["Application"]["source"]["helm"]["valuesObject"])
    return dict(kinds["HelmRelease"]["values"])


@pytest.mark.parametrize("name", ["argocd.yaml", "flux.yaml"])
def test_what_argo_cd_and_flux_are_told_renders(name: str, tmp_path: Path) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    for document in objects(name):
        validate(document, KUBERNETES[-1])
        source = document["spec"].get("source", {}).get("targetRevision") or document["spec"].get("ref", {}).get(
            "semver"
        )
        assert source in (None, version)
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(released(name)))
    found = [document for document in yaml.safe_load_all(render(values)) if document]
    for document in found:
        validate(document, KUBERNETES[-1])
    assert not of_kind(found, "Secret"), "it would be another one in each rendering"
    assert argument(found, "--policy-dir")
    assert containers(found)


def test_fluxs_configmap_is_the_one_that_routers_follow() -> None:
    kustomization = yaml.safe_load((GITOPS / "policies" / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    assert kustomization["generatorOptions"]["disableNameSuffixHash"]
    assert made["name"] == released("flux.yaml")["policies"]["configMap"]
    there = {path.name for path in (GITOPS / "policies").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(made["files"]) == there
    for file in there:
        linted = subprocess.run(
            [SPARSITY, "policy", "lint", GITOPS / "policies" / file], capture_output=True, text=True
        )
        assert linted.returncode == 0, linted.stderr
