"""What the chart renders, and what it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, examples, render
from helm import helm
from support.configured import configured

PROGRAMS = {"router": "sparsity_router", "worker": "sparsity_worker"}
SECRETS = {"access": "sparsity-access", "leases": "sparsity-leases"}


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(render(CHART / "examples" / f"{name}.yaml")) if document]


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def containers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every container of every pod, with its pod's spec beside it."""
    pods = [document["spec"] for document in found if document["kind"] == "Pod"]
    kinds = ("Deployment", "StatefulSet", "Job")
    pods += [document["spec"]["template"]["spec"] for document in found if document["kind"] in kinds]
    return [{**c, "pod": pod} for pod in pods for c in (*pod.get("initContainers", ()), *pod["containers"])]


def refusal(*settings: str, example: str = "trial") -> str:
    """What Helm says to values that must not render."""
    values = [] if example == "none" else ["-f", str(CHART / "examples" / f"{example}.yaml")]
    sets = [word for setting in settings for word in ("--set-json", setting)]
    command = [str(helm()), "template", "r", str(CHART), *values, *sets]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode, f"{settings} rendered"
    return result.stderr


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("router.replicas=-1", "/router/replicas"),
        ("router.repicas=1", "/router': additional properties 'repicas'"),
        ('workers.dense.profile="x"', "/workers/dense/profile"),
        ("workers.huge={}", "/workers': additional properties 'huge'"),
        ('workers.moderate.autoscaling.kind="vpa"', "/workers/moderate/autoscaling/kind"),
        ('defaults.image.digest="sha256:1"', "/defaults/image/digest"),
        ('redis.password="x"', "/redis': additional properties 'password'"),
        ('redis.url="http://x"', "/redis/url"),
        ('leases.key="x"', "/leases': additional properties 'key'"),
        ('operatorKey.value="x"', "/operatorKey': additional properties 'value'"),
        ("tracing.ratio=2", "/tracing/ratio"),
        ('policies.bandSet="lax"', "/policies/bandSet"),
        ('router.options={"Queue":1}', "/router/options': additional properties 'Queue'"),
        ("networkPolicy.redisPorts=[0]", "/networkPolicy/redisPorts/0"),
    ],
)
def test_the_schema_refuses_by_path(setting: str, path: str) -> None:
    assert path in refusal(setting)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (['redis.url="redis://:secret@r:6379"', "redis.embedded.enabled=false"], "redis.url: holds credentials"),
        (['redis.url="redis://r:6379"'], "redis: give one of redis.secretName"),
        (["redis.embedded.enabled=false"], "redis: give one of redis.secretName"),
        (["model.builtin=false"], "model.existingClaim: name a claim"),
        (['model.existingClaim="c"'], "model.builtin: goes without"),
        (['policies.documents={"a":{"domain":"b"}}'], "policies.documents.a.domain: must be a, not b"),
        (["workers.dense.enabled=false"], "workers.dense.enabled: must be true"),
        (["tls.router.clientAuth=true"], "tls.router.clientAuth: needs tls.router.secretName"),
        (['tls.workers.secretName="s"'], "tls.workers: give clientSecretName and serverName"),
        (['workers.dense.autoscaling.kind="keda"'], "workers.dense.autoscaling.kind: keda asks Prometheus"),
        (['router.autoscaling.kind="keda"', 'monitoring.prometheusUrl="http://p"'], "router.autoscaling.kind: must be"),
        (["router.autoscaling.minReplicas=9"], "router.autoscaling.minReplicas: is more than maxReplicas"),
        (['router.autoscaling.kind="hpa"', 'router.resources={"requests":null}'], "router.resources.requests.cpu"),
        (['router.options.listen="0.0.0.0:1"'], "router.options.listen: the chart sets it"),
        (['workers.dense.options.tier="moderate"'], "workers.dense.options.tier: the chart sets it"),
        (['workers.dense.image.tag="latest"'], "workers.dense.image.tag: latest names no version"),
    ],
)
def test_what_does_not_go_together_is_refused_by_path(settings: list[str], said: str) -> None:
    assert said in refusal(*settings)


def test_without_values_it_says_what_it_needs() -> None:
    assert "redis: give one of redis.secretName (a Secret with the URL)" in refusal(example="none")


@pytest.mark.parametrize("name", [path.stem for path in examples()])
def test_every_container_is_locked_down(name: str) -> None:
    for container in containers(documents(name)):
        security = container["pod"]["securityContext"] | container["securityContext"]
        assert security["runAsNonRoot"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not container["image"].endswith(":latest")
        assert "requests" in container["resources"]
        if container["name"] != "router":
            assert container["pod"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [path.stem for path in examples()])
def test_the_programs_take_the_arguments(name: str, tmp_path: Path) -> None:
    asked = [container for container in containers(documents(name)) if container["name"] in PROGRAMS]
    assert asked
    for container in asked:
        # What a Secret holds is known to the cluster only.
        environment = {entry["name"]: entry.get("value", "redis://store") for entry in container["env"]}
        options = configured(PROGRAMS[container["name"]], container["args"], environment, tmp_path)
        assert options.drain_seconds + 5 < container["pod"]["terminationGracePeriodSeconds"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        listens = {"grpc": options.listen, "health": options.health_listen, "metrics": options.metrics_listen}
        assert {key: f"0.0.0.0:{port}" for key, port in ports.items()} == listens
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[kind]["grpc"]["port"] == ports["health"]


@pytest.mark.parametrize("name", [path.stem for path in examples()])
def test_services_find_pods_and_nothing_is_named_twice(name: str) -> None:
    found = documents(name)
    kinds = ("Deployment", "StatefulSet")
    labels = [d["spec"]["template"]["metadata"]["labels"].items() for d in found if d["kind"] in kinds]
    for service in of_kind(found, "Service").values():
        assert sum(service["spec"]["selector"].items() <= each for each in labels) == 1
        assert "publishNotReadyAddresses" not in service["spec"]
    named = [(document["kind"], document["metadata"]["name"]) for document in found]
    assert len(named) == len(set(named))


def test_production_holds_no_secret_and_names_its_own() -> None:
    found = documents("production")
    assert not of_kind(found, "Secret")
    deployment = of_kind(found, "Deployment")["r-sparsity-router-router"]
    mounted = {v["secret"]["secretName"] for v in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in v}
    assert mounted == set(SECRETS.values())
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    url = next(entry for entry in environment if entry["name"] == "SPARSITY_REDIS_URL")
    assert url["valueFrom"]["secretKeyRef"] == {"name": "sparsity-redis", "key": "url"}
    assert "replicas" not in deployment["spec"], "an autoscaler sets them"


def test_alerts_and_dashboards_go_along() -> None:
    found = documents("production")
    rules = of_kind(found, "PrometheusRule")["r-sparsity-router"]["spec"]["groups"]
    urls = {rule["annotations"]["runbook_url"] for group in rules for rule in group["rules"]}
    assert all(url.startswith("https://docs.example.com/sparsity/runbooks/") for url in urls)
    shown = [name for name in of_kind(found, "ConfigMap") if "-dashboard-" in name]
    assert len(shown) == len(list((CHART / "files" / "dashboards").glob("*.json")))


def test_keda_asks_for_the_tier_of_its_pool() -> None:
    scaled = of_kind(documents("keda"), "ScaledObject")
    assert set(scaled) == {"r-sparsity-router-worker-dense", "r-sparsity-router-worker-moderate"}
    queries = [
        trigger["metadata"]["query"] for trigger in scaled["r-sparsity-router-worker-moderate"]["spec"]["triggers"]
    ]
    scope = '{namespace="ns",sparsity_tier="moderate"}'
    assert queries == [f"sum(sparsity_router_waiting{scope})", f"avg(sparsity_worker_kv_use{scope})"]


def test_discovery_by_endpointslices_may_read_them_and_no_more() -> None:
    found = documents("keda")
    (role,) = of_kind(found, "Role").values()
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    ]
    pod = of_kind(found, "Deployment")["r-sparsity-router-router"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    assert "k8s:///ns/r-sparsity-router-worker-dense:7001" in pod["containers"][0]["args"]
    assert not of_kind(documents("trial"), "Role")


def test_a_folder_of_examples_is_not_packed(tmp_path: Path) -> None:
    subprocess.run([str(helm()), "package", str(CHART), "-d", str(tmp_path)], check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tgz")
    listing = subprocess.run(["tar", "tzf", str(packed)], check=True, capture_output=True, text=True).stdout
    assert "sparsity-router/files/alerts.yaml" in listing
    assert "examples/" not in listing
