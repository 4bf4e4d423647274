"""The images' steps, as far as they go without a container engine: what is copied is enough for what is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import environment
import locks
import pytest
import yaml
from promql import ROOT
from support.deploy.configured import configured
from support.deploy.wheels import wheels_alone

DOCKER = ROOT / "deploy" / "docker"
IMAGE_FOLDER = "/opt/sparsity"


def steps(name: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile's first stage."""
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    lines = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ").splitlines()
    found = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    second = [place for place, (word, _) in enumerate(found) if word == "FROM"][1]
    return [(word, rest) for word, rest in found[:second]]


def copied(name: str, folder: Path) -> None:
    """Does the COPY steps, with what .dockerignore lets through, which is what git knows."""
    known = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for word, rest in steps(name):
        if word != "COPY":
            continue
        source, place = shlex.split(rest)
        for file in known.stdout.splitlines():
            if file == source or file.startswith(f"{source}/"):
                target = folder / (place + file.removeprefix(source))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, target)


def pip_step(name: str) -> str:
    (step,) = [rest for word, rest in steps(name) if word == "RUN" and "pip install" in rest]
    return step


@pytest.mark.timeout(600)
def test_the_router_image_installs_and_runs_without_torch(tmp_path: Path) -> None:
    source, place = tmp_path / "src", tmp_path / "opt"
    copied("router", source)
    place.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    own |= wheels_alone()
    # An image compiles what it installs, for whoever starts it; here each program is started once. By a variable, no is
    # how pip is told not to (pip.pypa.io/en/stable/topics/configuration/#boolean-options).
    own["PIP_NO_COMPILE"] = "no"
    for word, rest in steps("router"):
        if word == "RUN":
            command = rest.replace(IMAGE_FOLDER, str(place))
            result = subprocess.run(["sh", "-c", command], cwd=source, env=own, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[-3000:]
    shutil.rmtree(source)
    python = place / "venv" / "bin" / "python"
    for command in ([python, "-m", "sparsity_router", "--help"], [python.parent / "sparsity", "check", "--help"]):
        assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 0
    assert subprocess.run([place / "bin" / "valkey-server", "--version"], capture_output=True).returncode == 0
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"(?m)^(torch|sglang|nvidia-\S+) ", listed)
    assert "kubernetes_asyncio" in listed.replace("-", "_")
    carried = {path.name for path in place.glob("venv/lib/*/site-packages/spars*") if path.suffix != ".dist-info"}
    assert carried.isdisjoint({"sparsity_bench", "sparsity_quality"})
    assert carried >= {"sparsity", "sparsity_cli", "sparsity_router"}


@pytest.mark.parametrize("name", locks.IMAGES)
def test_images_install_by_hash_what_the_tests_run_on(name: str) -> None:
    # This very environment is made by the same constraints: the worker's eleven gigabytes are not installed twice.
    constraints = (ROOT / "constraints.txt").read_text().split()
    pinned = {named(line): line.partition("==")[2] for line in constraints}
    lock = locks.lock_file(name).read_text().replace("\\\n", " ")
    found = {named(line): line.split()[0].partition("==")[2] for line in lock.splitlines()}
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lock.splitlines())
    assert found == {package: pinned.get(package) for package in found}
    wanted = {named(line) for line in environment.requirements(locks.IMAGES[name])} - {"pip"}
    assert wanted <= found.keys()
    installed = [line for line in shlex.split(pip_step(name)) if line.startswith("./")]
    assert installed == [f"./{folder}" for folder in locks.IMAGES[name].distributions]


def named(requirement: str) -> str:
    """The package of a requirement, as indexes spell it."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("name", ["router", "worker"])
def test_images_are_pinned_and_run_as_nobody(name: str) -> None:
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    assert set(re.findall(r"(?m)^FROM (\S+)", text)) == {"python:3.11.14-slim-bookworm"}
    assert re.findall(r"(?m)^USER (.*)$", text)[-1] == "10001:10001"


def test_compose_starts_programs_by_arguments_that_they_take(tmp_path: Path) -> None:
    compose: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    started = {}
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys()
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= compose["volumes"].keys()
        command = service["command"]
        if command[0] == "python":
            started[name] = configured(command[2], command[3:], {}, tmp_path)
            assert service["read_only"]
            assert service["user"] == "10001:10001"
    assert started.keys() == {"router", "worker"}
    assert started["router"].workers == ("dns:///worker:7001",)
    # Else the router, whose folder has another name, would use no worker.
    (model,) = [part for part in services["worker"]["command"] if part.startswith("--model=")]
    assert model.rpartition("/")[2] in started["router"].served_model_names
    assert started["worker"].tiers == ("dense", "moderate", "aggressive")
    assert len(started["worker"].profiles) == 2
    overlay = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert overlay["services"].keys() == {"worker"}
