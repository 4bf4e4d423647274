"""Fields of pods, of the Service and of labels that the chart hands on: where they come to, and what goes with them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from charts import read
from support.deploy.rendered import documents, egress_ports, of_kind, pods, rendered, templates

ROUTER = "r-sparsity-router-router"


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return documents("fields")


def test_fields_without_values_of_their_own_are_the_apis(found: list[dict[str, Any]]) -> None:
    made = pods(found)
    assert [made[name]["schedulerName"] for name in ("router", "worker-shared")] == ["volcano"] * 2
    assert made["router"]["hostAliases"][0]["hostnames"] == ["store.example.com"]
    worker = made["worker-shared"]
    assert (worker["hostNetwork"], worker["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "hostNetwork" not in made["router"]
    service = of_kind(found, "Service")["r-sparsity-router"]["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert service["allocateLoadBalancerNodePorts"] is False
    assert service["selector"]["app.kubernetes.io/component"] == "router"


def test_a_service_of_another_type_takes_its_fields() -> None:
    node_port = 'router.service={"type":"NodePort","spec":{"externalTrafficPolicy":"Local"}}'
    service = of_kind(rendered(node_port), "Service")["r-sparsity-router"]["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("NodePort", "Local")


def test_what_runs_beside_routers_is_placed_and_finds_hosts_as_they_do(found: list[dict[str, Any]]) -> None:
    made = pods(found)
    shared = ("schedulerName", "hostAliases", "dnsPolicy", "dnsConfig")
    router = {key: made["router"][key] for key in shared}
    # The model's download, both jobs over policies, the store and `helm test`.
    for name in ("model", "lint", "import", "valkey", "check"):
        assert {key: made[name].get(key) for key in shared} == router, name
        assert "shareProcessNamespace" not in made[name], "it is of the programs beside a router"
    assert made["router"]["shareProcessNamespace"] is True


def test_routers_reach_workers_on_their_nodes_network(found: list[dict[str, Any]]) -> None:
    """Which have the nodes' addresses: no selector of pods finds them. The store still is a pod."""
    assert 7001 in egress_ports(found)
    policy = of_kind(found, "NetworkPolicy")[ROUTER]["spec"]
    to_pods = [
        rule["ports"] for rule in policy["egress"] if any(peer.keys() == {"podSelector"} for peer in rule.get("to", ()))
    ]
    assert to_pods == [[{"port": 6379, "protocol": "TCP"}]]
    # Where all workers have addresses of their own, routers reach nobody else there; a pool that is off says nothing.
    off = 'workers.rdma={"enabled":false,"tiers":["dense"],"podSpec":{"hostNetwork":true}}'
    for settings in ((), (off,)):
        assert 7001 not in egress_ports(rendered(*settings))
    elsewhere = rendered(
        'workers.shared.podSpec={"hostNetwork":true,"dnsPolicy":"ClusterFirstWithHostNet"}', example="production"
    )
    (rule,) = (
        rule
        for rule in of_kind(elsewhere, "NetworkPolicy")[ROUTER]["spec"]["egress"]
        if {"port": 7001, "protocol": "TCP"} in rule["ports"]
    )
    assert "to" not in rule


@pytest.mark.parametrize("path", ["router", "defaults"])
def test_routers_may_be_on_their_nodes_network_where_no_policy_knows_them(path: str) -> None:
    on_nodes = f'{path}.podSpec={{"hostNetwork":true,"dnsPolicy":"ClusterFirstWithHostNet"}}'
    made = rendered(on_nodes, "networkPolicy.enabled=false", "redis.embedded.enabled=true")
    found = pods(made)
    on_them = {name for name, pod in found.items() if pod.get("hostNetwork")}
    assert on_them == ({"router"} if path == "router" else {"router", "worker", "worker-shared"})
    assert (found["router"]["dnsPolicy"], "NetworkPolicy" in {each["kind"] for each in made}) == (
        "ClusterFirstWithHostNet",
        False,
    )


def test_labels_of_several_maps_are_said_once_and_the_objects_own_hold(found: list[dict[str, Any]]) -> None:
    """What renders a key twice is refused by Flux; reading it here fails too."""
    labels = {(each["kind"], each["metadata"]["name"]): each["metadata"]["labels"] for each in found}
    assert {kind for kind, _ in labels} >= {"PodMonitor", "PrometheusRule", "Service", "Job", "Pod"}
    assert labels["Service", "r-sparsity-router"].items() >= {"exposed": "public", "team": "edge"}.items()
    assert labels["Deployment", ROUTER]["team"] == "inference"
    for kind in ("PodMonitor", "PrometheusRule"):
        assert labels[kind, "r-sparsity-router"]["team"] == "monitoring"
    assert labels["ConfigMap", "r-sparsity-router-dashboard-overview"]["team"] == "monitoring"
    deployments = of_kind(found, "Deployment")
    (router,), (worker,) = (templates(deployments[f"r-sparsity-router-{name}"]) for name in ("router", "worker-shared"))
    assert worker["metadata"]["labels"].items() >= {"team": "serving", "zone": "a", "tier": "backend"}.items()
    assert (router["metadata"]["labels"]["tier"], router["metadata"]["labels"]["zone"]) == ("", "a")


def test_a_key_that_stands_twice_is_a_mistake() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="team stands twice"):
        read("metadata:\n  labels:\n    team: a\n    team: b\n")
    assert read("a: {team: a}\nb: {team: b}\n---\n---\nc: 1\n") == [{"a": {"team": "a"}, "b": {"team": "b"}}, {"c": 1}]
