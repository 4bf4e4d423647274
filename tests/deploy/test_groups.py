"""Pools whose workers are groups of pods, one a node: what LeaderWorkerSet is told, and who finds its pods."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from charts import KUBERNETES, validate
from support.deploy.configured import configured
from support.deploy.rendered import documents, of_kind, rendered, templates

GROUP, LEADER = "leaderworkerset.sigs.k8s.io/worker-index", "LWS_LEADER_ADDRESS"
ROOT = Path(__file__).resolve().parents[2]
INDEX = "$(LWS_WORKER_INDEX)"


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return documents("groups")


def group(found: list[dict[str, Any]], pool: str) -> dict[str, Any]:
    return of_kind(found, "LeaderWorkerSet")[f"r-sparsity-router-nodes-{pool}"]


def test_a_pool_of_several_nodes_is_groups_in_the_place_of_a_deployment(found: list[dict[str, Any]]) -> None:
    assert set(of_kind(found, "Deployment")) == {"r-sparsity-router-router"}
    shared, burst, spare = (group(found, pool)["spec"] for pool in ("shared", "burst", "spare"))
    assert [each["leaderWorkerTemplate"]["size"] for each in (shared, burst, spare)] == [2, 4, 2]
    assert shared["replicas"] == 3
    assert "replicas" not in burst.keys() | spare.keys(), "an autoscaler sets them"
    told = [each["rolloutStrategy"]["rollingUpdateConfiguration"] for each in (shared, burst)]
    assert told == [{"maxUnavailable": 0, "maxSurge": 1}, {"maxUnavailable": 1, "maxSurge": 0}]
    assert shared["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    # One node is a Deployment, whatever else is said.
    alone = rendered('workers.shared={"nodes":1,"options":{"tensor-parallel":2}}')
    assert not of_kind(alone, "LeaderWorkerSet")


def test_each_node_is_told_its_place(found: list[dict[str, Any]], tmp_path: Path) -> None:
    leader, follower = (
        template["spec"]["containers"][0] for template in templates(group(found, "shared"))
    )  # fmt: skip
    for container, rank in ((leader, 0), (follower, 1)):
        assert (INDEX in container["args"]) == bool(rank)
        arguments = [each.replace(INDEX, "1").replace(f"$({LEADER})", "r-0.r.ns") for each in container["args"]]
        options = configured("sparsity_worker", arguments, {}, tmp_path)
        assert (options.nodes.count, options.nodes.rank, options.nodes.address) == (2, rank, "r-0.r.ns:7003")
        assert (options.tensor_parallel, options.nodes.ranks(options.tensor_parallel)) == (16, 8)
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
        assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in container["env"]


@pytest.mark.parametrize("page", ["docs/kubernetes.md", "deploy/helm/sparsity-router/values.yaml"])
def test_the_controller_that_tells_nodes_their_rank_is_named(page: str) -> None:
    # First released in 0.6.0 (https://github.com/kubernetes-sigs/lws/pull/416); else the argument stays as written.
    told = " ".join((ROOT / page).read_text(encoding="utf-8").replace("#", " ").split())
    assert re.search(r"LeaderWorkerSet.{0,200}controller.{0,80}0\.6\.0", told)


def test_pods_of_a_group_differ_in_what_serves(found: list[dict[str, Any]]) -> None:
    leader, follower = copy.deepcopy(templates(group(found, "shared")))
    assert leader["metadata"] == follower["metadata"]
    ours, theirs = (template["spec"].pop("containers")[0] for template in (leader, follower))
    # A follower's health port is its own; keys are for who serves.
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ours[kind] == theirs[kind]
    volumes = [{each["name"] for each in template["spec"].pop("volumes")} for template in (leader, follower)]
    assert volumes[0] - volumes[1] == {"leases", "access"}
    assert {each["name"] for each in ours["volumeMounts"]} - {each["name"] for each in theirs["volumeMounts"]} == {
        "leases",
        "access",
    }
    assert [port["name"] for port in theirs["ports"]] == ["health", "metrics"]
    assert not {"--listen", "--lease-key-file", "--require-lease", "--access"} & set(theirs["args"])
    assert leader == follower
    (constraint,) = leader["spec"]["topologySpreadConstraints"]
    assert constraint["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/template-revision-hash"]


def test_only_leaders_are_found_and_all_of_a_group_may_talk(found: list[dict[str, Any]]) -> None:
    name = "r-sparsity-router-worker-shared"
    labels = templates(group(found, "shared"))[0]["metadata"]["labels"].items()
    selector = of_kind(found, "Service")[name]["spec"]["selector"]
    # The label is the controller's: leaders have 0.
    assert selector.pop(GROUP) == "0"
    assert selector.items() <= labels
    # The set makes a Service of its own name, in which pods are found before they are ready.
    assert not of_kind(found, "Service").keys() & of_kind(found, "LeaderWorkerSet").keys()
    policy = of_kind(found, "NetworkPolicy")[name]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    for rules, way in ((policy["ingress"], "from"), (policy["egress"], "to")):
        (between,) = (rule for rule in rules if rule.keys() == {way})
        (peer,) = between[way]
        assert peer == {"podSelector": policy["podSelector"]}
    budget = of_kind(found, "PodDisruptionBudget")[name]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels
    # No pod of a pool on single nodes may call another.
    alone = of_kind(documents("trial"), "NetworkPolicy")[name]["spec"]
    assert all("ports" in rule for rule in (*alone["ingress"], *alone["egress"]))


def test_autoscalers_count_groups_and_ask_their_leaders(found: list[dict[str, Any]]) -> None:
    scalers = {"ScaledObject": "burst", "HorizontalPodAutoscaler": "spare"}
    for kind, pool in scalers.items():
        (scaler,) = of_kind(found, kind).values()
        (api, made, name) = (scaler["spec"]["scaleTargetRef"][key] for key in ("apiVersion", "kind", "name"))
        target = group(found, pool)
        assert (api, made, name) == (target["apiVersion"], target["kind"], target["metadata"]["name"])
    (scaler,) = of_kind(found, "ScaledObject").values()
    query = scaler["spec"]["triggers"][1]["metadata"]["query"]
    assert 'pod=~"r-sparsity-router-nodes-burst-[0-9]+"' in query, "those of the leaders, whose names end so"


def test_objects_are_checked_with_the_pods_in_them(found: list[dict[str, Any]]) -> None:
    made = group(found, "shared")
    for version in KUBERNETES:
        validate(made, version)
    wrong = copy.deepcopy(made)
    wrong["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]["arg"] = []
    with pytest.raises(SystemExit, match=r"LeaderWorkerSet r-sparsity-router-nodes-shared on .*'arg' was unexpected"):
        validate(wrong, KUBERNETES[-1])
    stuck = copy.deepcopy(made)
    stuck["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"] = {"maxUnavailable": 0, "maxSurge": 0}
    with pytest.raises(SystemExit, match="maxSurge: 0 is less than"):
        validate(stuck, KUBERNETES[-1])
