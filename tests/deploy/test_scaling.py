"""What scales pools is asked of a real Prometheus: promtool plays rules, and a server reads a router's metrics."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from charts import CHART, ROOT
from prometheus_server import program
from sparsity.v1 import inference_pb2_grpc
from sparsity_client.wire import make_request
from support.deploy.rendered import documents, of_kind
from support.ports import free_port
from support.routers.router_process import RouterProcess

POLICY = {"domain": "batch", "risk": "low", "bands": [{"from_tokens": 0, "tier": "aggressive"}]}
# As the PodMonitor's relabelling adds them.
LABELS = {"namespace": "ns", "app_kubernetes_io_instance": "r"}


def played(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_alerts_are_rules_that_prometheus_takes() -> None:
    assert "SUCCESS" in played("check", "rules", str(CHART / "files" / "alerts.yaml"))


@pytest.mark.parametrize("name", ["alerts_test", "scaling_test"])
def test_alerts_and_what_scaling_asks_are_answered_as_they_must_be(name: str) -> None:
    assert "SUCCESS" in played("test", "rules", f"tests/deploy/{name}.yaml")


def test_a_program_on_the_path_is_taken_and_where_no_apt_is_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SystemExit, match="no apt-get here to fetch prometheus with: install that yourself"):
        program()
    (tmp_path / "prometheus").write_text("#!/bin/sh\n")
    (tmp_path / "prometheus").chmod(0o755)
    assert program() == str(tmp_path / "prometheus")


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Callable[[str], list[float]]]:
    """A server that reads one target's metrics; gives what it is asked by."""
    address = f"127.0.0.1:{free_port()}"
    scrape = {"job_name": "routers", "static_configs": [{"targets": [target], "labels": LABELS}]}
    file = folder / "prometheus.yaml"
    file.write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}} | {"scrape_configs": [scrape]})
    )
    command = [
        program(),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={address}",
    ]

    def ask(query: str) -> list[float]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told: dict[str, Any] = json.load(answer)
        return [float(each["value"][1]) for each in told["data"]["result"]]

    with open(folder / "prometheus.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield ask
        finally:
            process.terminate()


def until(asked: Callable[[], list[float]], wanted: list[float]) -> None:
    """Waits for an answer; a server that does not listen yet is asked again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            found: object = asked()
        except OSError as error:
            found = error
        if found == wanted:
            return
        assert time.monotonic() < deadline, f"{found}, not {wanted}"
        time.sleep(0.1)


def test_a_pool_that_has_gone_is_asked_for_once_its_tier_is_wanted(tmp_path: Path) -> None:
    """What KEDA asks of the rendered pool says nothing to do, then one, though no worker is there to tell of it."""
    trigger = of_kind(documents("keda"), "ScaledObject")["r-sparsity-router-worker-batch"]["spec"]["triggers"][0]
    query = trigger["metadata"]["query"]
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "batch.yaml").write_text(yaml.safe_dump(POLICY))
    metrics = f"127.0.0.1:{free_port()}"
    options = ("--policy-dir", str(policies), "--metrics-listen", metrics, "--queue-seconds", "1")
    with RouterProcess(tmp_path, *options) as router, prometheus(tmp_path, metrics) as ask:
        until(lambda: ask(query), [0.0])
        with grpc.insecure_channel(router.address) as channel, pytest.raises(grpc.RpcError) as refused:
            list(
                inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                    make_request("hello", domain="batch"), timeout=30
                )
            )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        until(lambda: ask(query), [1.0])
