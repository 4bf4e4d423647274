"""Workers that the chart does not run: servers of stock SGLang, and workers of other releases."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.deploy.configured import configured
from support.deploy.rendered import documents, egress_ports, of_kind, pods, rendered

OFF = "workers.shared.enabled=false"


def asked(found: list[dict[str, Any]]) -> list[str]:
    arguments = pods(found)["router"]["containers"][0]["args"]
    return [place for flag, place in pairwise(arguments) if flag == "--worker"]


def test_stock_servers_stand_beside_pools_as_what_serves_dense() -> None:
    found = documents("stock")
    ours = "dns:///r-sparsity-router-worker-shared.ns.svc.cluster.local:7001"
    stock = ["sglang+dns:///sglang-headless.llm.svc.cluster.local:30000", "sglang+grpc://10.0.0.7:30001"]
    assert asked(found) == [ours, *stock]
    assert egress_ports(found) == [30000, 30001, 6379]


def test_a_release_may_run_no_worker_at_all(tmp_path: Path) -> None:
    tokenizer = 'router.tokenizer={"existingClaim":"tokenizer"}'
    found = rendered(OFF, tokenizer, "model.existingClaim=null", example="stock")
    assert set(of_kind(found, "Deployment")) == {"r-sparsity-router-router"}
    router = pods(found)["router"]
    claims = [volume["persistentVolumeClaim"] for volume in router["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "tokenizer", "readOnly": True}]
    (container,) = router["containers"]
    options = configured("sparsity_router", container["args"], {"SPARSITY_REDIS_URL": "redis://store"}, tmp_path)
    assert options.workers == tuple(asked(found))
    assert len(options.workers) == 2


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("sglang+grpc://[fd00::7]:30002", 30002),
        ("sglang+k8s:///ns/sglang:30003", 30003),
        ("dns:///other-worker-dense.ns.svc:7001", 7001),
        ("10.0.0.9:7001", 7001),
    ],
)
def test_every_form_of_an_address_is_reached(address: str, port: int) -> None:
    found = rendered(f'router.workers=["{address}"]', 'router.discovery="kubernetes"')
    assert address in asked(found)
    assert port in egress_ports(found)


def test_endpoints_in_other_namespaces_may_be_read_there() -> None:
    places = '["sglang+k8s:///llm/sglang:30000","k8s:///ns/other:7001"]'
    found = rendered(f"router.workers={places}", 'router.discovery="kubernetes"', example="stock")
    roles = [each for each in found if each["kind"] in ("Role", "RoleBinding")]
    assert {each["metadata"].get("namespace", "ns") for each in roles} == {"ns", "llm"}
    for each in roles:
        if each["kind"] == "RoleBinding":
            assert each["subjects"][0]["namespace"] == "ns"


def test_a_pool_comes_back_only_for_what_stock_servers_do_not_serve() -> None:
    """Dense is held: a pool of ours that serves it too comes for what waits."""
    pool = '{"tiers":["dense"],"profiles":[],"autoscaling":{"kind":"keda","minReplicas":0}}'
    settings = (f"workers.burst={pool}", 'monitoring.prometheusUrl="http://p"')
    scaler = of_kind(rendered(*settings, example="stock"), "ScaledObject")["r-sparsity-router-worker-burst"]
    assert "wanted" not in scaler["spec"]["triggers"][0]["metadata"]["query"]
