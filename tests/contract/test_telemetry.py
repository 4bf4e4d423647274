"""How a service is named in what it tells of itself."""

from __future__ import annotations

import pytest
from sparsity import telemetry


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=edge%20router ,c=d"}, "edge router"),
        ({"OTEL_SERVICE_NAME": "first", "OTEL_RESOURCE_ATTRIBUTES": "service.name=second"}, "first"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=x,odd"}, "ours"),
    ],
)
def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str) -> None:
    named: list[str] = []
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(telemetry, "_configure_traces", named.append)
    monkeypatch.setattr(telemetry, "configure_metrics", lambda service, *_, **__: named.append(service))
    telemetry.configure("ours")
    assert named == [name, name]
