"""Several models in one release: which pools serve which, and what routers are told of each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import value_files
from sparsity_policies.model import Risk, Tier
from sparsity_router.models.document import Fronted
from support.deploy.configured import configured
from support.deploy.rendered import documents, egress_ports, models_file, of_kind, pods, rendered

RELEASE = "r-sparsity-router-"
SEVERAL = ("aliases", "echoes", "models", "two-models")

ONE = ("model.builtin=false", 'models={"a":{"existingClaim":"a"}}', 'workers.shared.model="a"')
KEDA = ('workers.shared.autoscaling.kind="keda"', 'monitoring.prometheusUrl="http://prometheus"')


def after(container: dict[str, Any], flag: str) -> list[str]:
    """What stands behind each of a flag among a container's arguments."""
    return [value for found, value in pairwise(container["args"]) if found == flag]


def fronted(found: list[dict[str, Any]], folder: Path) -> dict[str, Fronted]:
    """The models by their folders' names, as the router itself reads them."""
    (router,) = pods(found)["router"]["containers"]
    environment = {"SPARSITY_REDIS_URL": "redis://store"}
    options = configured("sparsity_router", router["args"], environment, folder, models_file(found))
    return {one.folder.name: one for one in options.fronted()}


def mounts(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a pod's program mounts below /models, by the place."""
    return {each["mountPath"]: each for each in pod["containers"][0]["volumeMounts"] if "/models/" in each["mountPath"]}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_pools_workers_are_those_of_the_model_that_it_names(name: str, tmp_path: Path) -> None:
    found = documents(name)
    models, workers = fronted(found, tmp_path), set[str]()
    (file,) = (file for file in value_files() if file.stem == name)
    for pool, said in yaml.safe_load(file.read_text())["workers"].items():
        (worker,) = pods(found)[f"worker-{pool}"]["containers"]
        (folder,), (told,) = after(worker, "--model"), after(worker, "--served-model-name")
        assert folder == f"/models/{said['model']}"
        model = models[said["model"]]
        assert told == model.name
        # By its name alone: a router of other versions tells workers by their folders.
        assert {told, Path(folder).name} <= model.known_as
        (address,) = (place for place in model.workers if f"{RELEASE}worker-{pool}" in place)
        workers.add(address)
    elsewhere = {place for one in models.values() for place in one.workers} - workers
    assert len(elsewhere) == (3 if name == "aliases" else 0)
    assert not after(pods(found)["router"]["containers"][0], "--worker")


@pytest.mark.parametrize("name", SEVERAL)
def test_every_model_lies_in_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    found = documents(name)
    told = yaml.safe_load(models_file(found))["models"]
    for pod in (pod for component, pod in pods(found).items() if component.startswith(("router", "worker"))):
        volumes = [each["name"] for each in pod["volumes"]]
        assert len(volumes) == len(set(volumes))
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= set(volumes)
        # A pod with two volumes of one claim never starts.
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert len(claims) == len(set(claims))
        assert len({each["name"] for each in pod.get("initContainers", ())}) == len(pod.get("initContainers", ()))
        folders = {entry["folder"] for entry in told}
        if pod["containers"][0]["name"] == "router":
            assert mounts(pod).keys() == folders
        else:
            # Its own, as its workers read it.
            (own,) = [argument for argument in pod["containers"][0]["args"] if argument in folders]
            assert mounts(pod).keys() == {own}
        assert all(mount["readOnly"] for mount in mounts(pod).values())
        for container in pod.get("initContainers", ()):
            own = container["name"].partition("-")[2]
            assert {mount["mountPath"] for mount in container["volumeMounts"]} <= {f"/models/{own}", "/cache", "/tmp"}


def test_models_of_one_claim_lie_in_folders_of_it() -> None:
    router = mounts(pods(documents("aliases"))["router"])
    assert router["/models/qwen"]["name"] == router["/models/llama"]["name"]
    assert [router[f"/models/{model}"]["subPath"] for model in ("qwen", "llama")] == ["qwen/7b", "llama/8b"]
    (init,) = pods(documents("aliases"))["router"]["initContainers"]
    assert init["command"] == ["cp", "-rL", "/files/.", "/models/away/"]


def test_the_default_model_is_the_first_and_names_and_bands_are_the_routers(tmp_path: Path) -> None:
    models = fronted(documents("aliases"), tmp_path)
    first, *others = models.values()
    assert (first.name, first.aliases) == ("Qwen/Qwen2.5-7B-Instruct", ("small", "qwen2.5-7b"))
    assert [one.folder.name for one in others] == ["away", "llama"]
    assert [(band.from_tokens, band.tier) for band in first.bands[Risk.LOW]] == [
        (0, Tier.DENSE),
        (2048, Tier.MODERATE),
        (1_000_000, Tier.AGGRESSIVE),
    ]
    assert [band.tier for band in first.bands[Risk.ELEVATED]] == [Tier.DENSE]
    assert models["away"].workers == ("sglang+k8s:///llm/llama:30001", "k8s:///other/llama-sparse:7001")


def test_routers_start_anew_with_another_file() -> None:
    """They read it at start, and each ConfigMap stays as it is: the pod names another."""
    before, same, after_ = (
        rendered(*ONE, *more) for more in ((), ("router.replicas=3",), ('models.a.aliases=["small"]',))
    )
    names = []
    for found in (before, same, after_):
        (name,) = (name for name in of_kind(found, "ConfigMap") if "-models-" in name)
        assert of_kind(found, "ConfigMap")[name]["immutable"] is True
        assert {"name": "models", "configMap": {"name": name}} in pods(found)["router"]["volumes"]
        names.append(name)
    assert names[0] == names[1] != names[2]


def test_each_model_is_brought_by_itself() -> None:
    found = documents("models")
    (claim,) = of_kind(found, "PersistentVolumeClaim").values()
    assert claim["metadata"]["name"] == f"{RELEASE}model-small"
    ((name, job),) = ((name, job) for name, job in of_kind(found, "Job").items() if "-model-" in name)
    assert name.startswith(f"{RELEASE}model-small-")
    (download,) = job["spec"]["template"]["spec"]["containers"]
    rule = job["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["onExitCodes"]["containerName"] == download["name"]
    target = next(each["value"] for each in download["env"] if each["name"] == "TARGET")
    for pool in ("shared", "burst"):
        pod = pods(found)[f"worker-{pool}"]
        assert f"{target}/.complete" in pod["initContainers"][0]["args"][0]
        assert mounts(pod)["/models/small"]["subPath"] == target.removeprefix("/cache/")
    (big,) = pods(found)["worker-big"]["initContainers"]
    assert big["args"][:4] == ["rclone", "copy", ":s3:models/large", "/models/large"]
    brought = {each["name"]: each["args"] for each in pods(found)["router"]["initContainers"]}
    assert {name: f"/models/{name.removeprefix('model-')}" in args for name, args in brought.items()} == {
        "model-small": True,
        "model-large": True,
    }


def test_the_network_and_deadlines_are_those_of_each_models_download() -> None:
    found = documents("models")
    ports = {part: egress_ports(found, part) for part in ("model-small", "worker-shared", "worker-big", "router")}
    assert ports == {"model-small": [8443], "worker-shared": [], "worker-big": [9000], "router": [6379, 8443, 9000]}
    deployments = of_kind(found, "Deployment")
    # 300 s, the start of the slowest, and what a download may take: 600 s of one, and of the other what `model` says.
    deadlines = {
        part: deployments[f"{RELEASE}{part}"]["spec"]["progressDeadlineSeconds"]
        for part in ("worker-shared", "worker-big", "router")
    }
    assert deadlines == {"worker-shared": 300 + 600 + 600, "worker-big": 300 + 1200 + 3600, "router": 300 + 1200 + 3600}
    job = next(job for name, job in of_kind(found, "Job").items() if "-model-" in name)
    assert job["spec"]["activeDeadlineSeconds"] == 600
    assert {30000, 30001, 7001} <= set(egress_ports(documents("aliases")))


def test_pools_scale_by_the_requests_of_their_model() -> None:
    found = documents("models")

    def asked(pool: str) -> str:
        query: str = of_kind(found, "ScaledObject")[f"{RELEASE}worker-{pool}"]["spec"]["triggers"][0]["metadata"][
            "query"
        ]
        return query

    assert asked("burst").count('gen_ai_request_model="small"') == asked("burst").count("sparsity_tier") == 2
    assert asked("big").count('gen_ai_request_model="large"') == 1
    # Another model's pool holds the tier, and does nothing for this one's.
    assert "sparsity_router_wanted_total" in asked("burst")
    (scaler,) = of_kind(documents("aliases"), "HorizontalPodAutoscaler").values()
    labels = scaler["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]
    assert labels == {"app_kubernetes_io_instance": "r", "gen_ai_request_model": "llama"}
    assert "gen_ai_request_model" not in str(of_kind(documents("keda"), "ScaledObject"))
    found = rendered(*ONE, *KEDA, 'models.a.name="50% of it"')
    assert 'gen_ai_request_model="50% of it"' in asked("shared")


def test_endpoints_of_every_models_workers_may_be_read() -> None:
    roles = [each for each in documents("aliases") if each["kind"] == "Role"]
    assert {role["metadata"].get("namespace", "ns") for role in roles} == {"ns", "llm", "other"}
