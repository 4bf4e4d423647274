"""Telemetry bears the names of one version of OpenTelemetry's conventions, which their own package has."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.semconv.schemas import Schemas
from sparsity.v1 import inference_pb2
from sparsity_rpc import semconv
from sparsity_serving.metrics.metering import Generations, Times, meter_of

ROOT = Path(__file__).resolve().parents[2]
_REGISTRY = (gen_ai_attributes, rpc_attributes, gen_ai_metrics, error_attributes, server_attributes)
_NAMES = {
    name: value for name, value in vars(semconv).items() if name.startswith(("GEN_AI_", "RPC_", "ERROR_", "SERVER_"))
}
# Whoever writes one by hand writes it without its version.
_SPELLED = re.compile(r"""["'](?:gen_ai|rpc|error|server)\.[a-z_.]+["']|get_(?:tracer|meter)\(""")


def _home(name: str) -> ModuleType:
    (found,) = {id(module): module for module in _REGISTRY if hasattr(module, name)}.values()
    return found


@pytest.mark.parametrize("name", sorted(_NAMES))
def test_a_name_is_the_registrys_and_none_that_it_gave_up(name: str) -> None:
    module = _home(name)
    assert getattr(module, name) == _NAMES[name]
    source = Path(str(module.__file__)).read_text()
    (told,) = re.findall(rf'(?ms)^{name}: Final = "[^"]+"\n"""(.*?)"""', source)
    # Since 1.42 the GenAI conventions have a repository of their own, in which these names stay.
    assert "Deprecated: " not in told.replace("Deprecated: Moved to the [OpenTelemetry GenAI", "")


def test_the_version_is_the_newest_that_the_package_knows_and_its_values_are_known() -> None:
    versions = {tuple(map(int, schema.value.rpartition("/")[2].split("."))): schema.value for schema in Schemas}
    assert versions[max(versions)] == semconv.SCHEMA_URL
    assert {semconv.CHAT, semconv.TEXT_COMPLETION} <= {
        value.value for value in gen_ai_attributes.GenAiOperationNameValues
    }
    assert {semconv.JSON, semconv.TEXT} <= {value.value for value in gen_ai_attributes.GenAiOutputTypeValues}
    assert rpc_attributes.RpcSystemNameValues.GRPC.value == semconv.GRPC
    # The conventions let those name themselves whom they do not list.
    assert semconv.PROVIDER not in {value.value for value in gen_ai_attributes.GenAiProviderNameValues}


@pytest.mark.parametrize(
    "package", ["client/sparsity_client", "client/sparsity_rpc", "serving", "router", "worker", "cli"]
)
def test_names_and_their_version_are_written_in_one_place(package: str) -> None:
    homes = ("semconv.py", "tracing.py", "metering.py")
    read = [path for path in (ROOT / package).rglob("*.py") if path.name not in homes]
    assert read
    found = {str(path.relative_to(ROOT)): _SPELLED.findall(path.read_text()) for path in read}
    assert not {path: names for path, names in found.items() if names}


def test_the_three_metrics_of_model_servers_are_as_the_conventions_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr("opentelemetry.metrics._internal.get_meter_provider", lambda: provider)
    generations = Generations(meter_of("test"))
    usage = inference_pb2.Usage(prompt_tokens=9, completion_tokens=3)
    generations.record(inference_pb2.Completion(usage=usage), Times(0.5, 1.5), {"gen_ai.request.model": "m"}, "chat")
    generations.failed(0.25, {"gen_ai.request.model": "m"}, "text_completion", "UNAVAILABLE")
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.schema_url == scope.scope.schema_url == semconv.SCHEMA_URL
    found = {metric.name: metric for metric in scope.metrics if metric.name.startswith("gen_ai")}
    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "sparsity", "gen_ai.request.model": "m"}
    failed = chat | {"gen_ai.operation.name": "text_completion", "error.type": "UNAVAILABLE"}
    bounds = {
        "gen_ai.server.request.duration": [
            0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
        ],
        "gen_ai.server.time_to_first_token": [
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        ],
        "gen_ai.server.time_per_output_token": [
            0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
        ],
    }  # fmt: skip
    assert found.keys() == bounds.keys()
    for name, metric in found.items():
        assert metric.unit == "s"
        points = [(dict(point.attributes or {}), point.sum) for point in metric.data.data_points]  # type: ignore[union-attr]
        assert all(list(point.explicit_bounds) == bounds[name] for point in metric.data.data_points)  # type: ignore[union-attr]
        first = {"gen_ai.server.request.duration": 1.5}.get(name, 0.5)
        assert points == [(chat, first), *([(failed, 0.25)] if name.endswith(".duration") else [])]
