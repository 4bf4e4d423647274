"""Where the model comes from: what is rendered, and the download itself, as its container would run it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.deploy.hub import COMMIT, hub
from support.deploy.rendered import containers, documents, egress_ports, of_kind, pods, rendered

NAME = "Llama-3.1-8B-Instruct-"
TOKENIZER = {"config.json": b'{"vocab_size": 8}', "tokenizer.json": b"{}", "tokenizer_config.json": b'{"a": 1}'}
FILES = {**TOKENIZER, "model.safetensors": bytes(range(256)) * 64, "original/params.json": b"{}"}


def downloads(found: list[dict[str, Any]], pod: str) -> dict[str, Any]:
    """The container that brings a pod's model, or the job's."""
    if pod == "job":
        (job,) = (job for name, job in of_kind(found, "Job").items() if name.startswith("r-sparsity-router-model-"))
        (container,) = job["spec"]["template"]["spec"]["containers"]
    else:
        (container,) = pods(found)[pod]["initContainers"]
    assert container["name"] == "model"
    return dict(container)


def start(container: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it with ``folder`` in the place of the volumes that it mounts."""
    own = {"PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder)} | environment
    places = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "model"]

    def placed(word: str) -> str:
        for place in places:
            word = word.replace(place, str(folder / place[1:]))
        return word

    own |= {
        each["name"]: placed(each["value"]) for each in container["env"] if each["name"] not in ("HOME", "HF_TOKEN")
    }
    command = [placed(word) for word in (*container["command"], *container["args"])]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False, cwd=folder)


def test_workers_tell_the_models_name_that_is_given() -> None:
    for given, name in (('model.name="qwen-7b"', ["qwen-7b"]), ("router.replicas=2", [])):
        arguments = pods(rendered(given, example="model"))["worker-shared"]["containers"][0]["args"]
        assert [value for flag, value in pairwise(arguments) if flag == "--served-model-name"] == name


@pytest.mark.parametrize(
    ("example", "settings", "name"),
    [
        ("model", (), []),
        ("model", ('model.name="qwen-7b"',), ["qwen-7b"]),
        # So a model is renamed: by its old name, too, until the last worker of it has gone.
        ("model", ('model.name="qwen-7b"', 'model.aliases=["models", "qwen"]'), ["qwen-7b", "models", "qwen"]),
        ("model", ('model.aliases=["qwen"]',), ["models", "qwen"]),
        ("trial", ('router.tokenizer.existingClaim="tokenizer"',), ["SmolLM2-135M-Instruct"]),
    ],
)
def test_routers_call_the_model_as_their_workers_do(example: str, settings: tuple[str, ...], name: list[str]) -> None:
    """By the folder's name of either, where it is the same."""
    found = pods(rendered(*settings, example=example))
    routers = found["router"]["containers"][0]["args"]
    assert [value for flag, value in pairwise(routers) if flag == "--served-model-name"] == name


def test_a_model_is_downloaded_once_into_its_claim_and_pods_wait_for_it() -> None:
    found = documents("model")
    (claim,) = of_kind(found, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    job = downloads(found, "job")
    target = next(each["value"] for each in job["env"] if each["name"] == "TARGET")
    assert target.startswith(f"/cache/{NAME}")
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hugging-face", "key": "token"}}} in job["env"]
    worker = pods(found)["worker-shared"]
    assert {
        "name": "model",
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"], "readOnly": True},
    } in worker["volumes"]
    (mount,) = (each for each in worker["containers"][0]["volumeMounts"] if each["name"] == "model")
    assert (mount["mountPath"], mount["subPath"], mount["readOnly"]) == (
        "/models",
        target.removeprefix("/cache/"),
        True,
    )
    (wait,) = worker["initContainers"]
    assert f"{target}/.complete" in wait["args"][0]
    # A job cannot be changed: another revision is another one, beside the model that pods still read.
    other = rendered('model.source="hf://meta-llama/Llama-3.1-8B-Instruct@v2"', example="model")
    names = [name for each in (found, other) for name in of_kind(each, "Job")]
    assert len(set(names)) == 2
    assert downloads(other, "job")["env"][1] != job["env"][1]


def test_upgrades_and_the_network_wait_for_the_download_too() -> None:
    found = documents("model")
    deadlines = [each["spec"]["progressDeadlineSeconds"] for each in of_kind(found, "Deployment").values()]
    assert deadlines == [300 + 600 + 3600] * 2
    assert egress_ports(found, "model") == [443]
    assert 443 in egress_ports(found, "router")
    assert egress_ports(found, "worker-shared") == []
    own = documents("bucket")
    assert 9000 in egress_ports(own, "router")
    assert egress_ports(own, "worker-shared") == [9000]
    assert not of_kind(own, "Job")
    assert egress_ports(documents("artifact"), "model") == [5000]


@pytest.mark.parametrize(
    ("source", "endpoint", "more", "ports"),
    [
        ("hf://org/name@c0ffee", "http://mirror:8081", [], [8081]),
        ("hf://org/name@c0ffee", "https://mirror.example.com/hub/", [], [443]),
        ("hf://org/name@c0ffee", "", [8443], [8443, 443]),
        ("s3://bucket/folder", "", [], [443]),
        ("s3://bucket/folder", "http://minio.store:9000", [], [9000]),
        ("s3://bucket/folder", "http://minio", [], [80]),
        ("s3://bucket/folder", "http://[fd00::9]:9001", [], [9001]),
        ("oci://registry:5000/models/a:1", "", [443], [443, 5000]),
        ("oci://registry-2/models/a:1", "", [], [443]),
    ],
)
def test_the_network_lets_a_download_through_to_where_it_comes_from(
    source: str, endpoint: str, more: list[int], ports: list[int]
) -> None:
    settings = (f'model.source="{source}"', f'model.download.endpoint="{endpoint}"', f"networkPolicy.modelPorts={more}")
    assert egress_ports(rendered(*settings, example="model"), "model") == ports


@pytest.mark.parametrize(
    ("name", "volume", "folder"),
    [
        ("volume", {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}, "llama/8b"),
        ("folders", {"hostPath": {"path": "/var/lib/models/smollm2", "type": "Directory"}}, None),
    ],
)
def test_a_model_that_is_there_is_mounted(name: str, volume: dict[str, Any], folder: str | None) -> None:
    worker = pods(documents(name))["worker-shared"]
    assert {"name": "model"} | volume in worker["volumes"]
    (mount,) = (each for each in worker["containers"][0]["volumeMounts"] if each["name"] == "model")
    assert mount.get("subPath") == folder
    assert "initContainers" not in worker


def test_the_hubs_files_come_whole_and_are_compared_with_it(tmp_path: Path) -> None:
    found = rendered(f'model.source="hf://org/small@{COMMIT}"', example="model")
    with hub("org/small", FILES, token="t") as there:
        job = downloads(found, "job")

        def tried(token: str = "t") -> subprocess.CompletedProcess[str]:
            return start(job, tmp_path, HF_ENDPOINT=there.address, HF_TOKEN=token)

        there.damaged.add("model.safetensors")
        told = tried()
        assert told.returncode == 3, told.stderr
        assert "checksums are not the source's" in told.stderr
        (made,) = (tmp_path / "cache").iterdir()
        assert list(made.iterdir()) == []
        there.damaged.clear()
        assert tried("wrong").returncode not in (0, 3), "the job tries again"
        told = tried()
        assert told.returncode == 0, told.stderr
        assert "model: whole" in told.stdout
        kept = FILES.keys() - {"original/params.json"}
        assert {file: (made / file).read_bytes() for file in kept} == {file: FILES[file] for file in kept}
        assert (made / ".complete").read_text() == f"hf://org/small@{COMMIT}\n"
        assert "original/params.json" not in there.taken
        there.taken.clear()
        assert "is whole already" in tried().stdout
        assert there.taken == []
        # Routers take no more than they read.
        told = start(downloads(found, "router"), tmp_path, HF_ENDPOINT=there.address, HF_TOKEN="t")
        assert told.returncode == 0, told.stderr
        assert set(there.taken) == TOKENIZER.keys()


def test_sums_of_the_values_must_be_those_of_the_files(tmp_path: Path) -> None:
    """With a program in rclone's place that copies a folder."""
    source, bin_folder = tmp_path / "models" / "smollm2-135m", tmp_path / "bin"
    source.mkdir(parents=True)
    bin_folder.mkdir()
    for file, content in {**TOKENIZER, "model.safetensors": FILES["model.safetensors"]}.items():
        (source / file).write_bytes(content)
    program = bin_folder / "rclone"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncp {source}/* "$3"\n')
    program.chmod(0o755)
    sums = {
        file: hashlib.sha256(source.joinpath(file).read_bytes()).hexdigest()
        for file in ("model.safetensors", "config.json")
    }
    right = ",".join(f'"{file}":"{digest}"' for file, digest in sums.items())
    settings = ('model.source="s3://models/smollm2-135m"', "model.cache.size=null")
    container = downloads(rendered(*settings, f"model.sha256={{{right}}}", example="model"), "worker-shared")
    told = start(container, tmp_path)
    assert told.returncode == 0, told.stderr
    assert "model.safetensors: OK" in told.stdout
    assert (tmp_path / "asked").read_text().startswith("copy :s3:models/smollm2-135m ")
    (tmp_path / "models" / ".complete").unlink()
    wrong = f'"config.json":"{"0" * 64}"'
    container = downloads(rendered(*settings, f"model.sha256={{{wrong}}}", example="model"), "worker-shared")
    told = start(container, tmp_path)
    assert told.returncode == 3
    assert "checksums are not those of model.sha256" in told.stderr


def test_each_source_has_its_program_and_its_login() -> None:
    artifact, bucket = documents("artifact"), documents("bucket")
    pull = downloads(artifact, "job")
    assert pull["image"] == "mirror.example.com/oras:v1.3.0"
    assert pull["args"][:3] == ["oras", "pull", "registry.example.com:5000/models/smollm2:1.0"]
    (login,) = (each["mountPath"] for each in pull["volumeMounts"] if each["name"] == "registry-login")
    assert f"--registry-config={login}/.dockerconfigjson" in pull["args"]
    assert not of_kind(artifact, "PersistentVolumeClaim")
    copy = downloads(bucket, "worker-shared")
    assert copy["args"][:3] == ["rclone", "copy", ":s3:models/smollm2-135m"]
    assert copy["envFrom"] == [{"secretRef": {"name": "store"}}]
    variables = {each["name"]: each["value"] for each in copy["env"]}
    assert variables["RCLONE_S3_ENDPOINT"] == "https://store.example.com:9000"
    filters = [word.removeprefix("--filter=") for word in copy["args"] if word.startswith("--filter=")]
    assert filters == ["- original/**", "+ *.json", "+ *.safetensors", "- *"]
    own = downloads(bucket, "router")
    assert [word for word in own["args"] if word.startswith("--filter=+")] == [
        f"--filter=+ /{name}"
        for name in (
            "tokenizer.json", "config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
        )
    ]  # fmt: skip
    sums = {each["name"]: each["value"] for each in own["env"]}["SHA256"]
    assert "tokenizer.json" in sums
    assert "model.safetensors" not in sums
    assert copy["image"] == "docker.io/rclone/rclone:1.71.2"
    mirrored = rendered('global.imageRegistry="all.example.com"', 'model.source="s3://models/small"', example="model")
    assert downloads(mirrored, "job")["image"] == "all.example.com/rclone/rclone:1.71.2"
    for found in (artifact, bucket):
        assert all("@" in each["image"] or ":" in each["image"].rsplit("/", 1)[-1] for each in containers(found))
