from __future__ import annotations

from pathlib import Path

import pytest
from sparsity.v1 import inference_pb2
from sparsity_serving.metrics.metering import Times
from sparsity_worker.calls.load import Load
from sparsity_worker.calls.worker_metrics import WorkerMetrics, _thirds
from sparsity_worker.config import ModelFacts, WorkerConfig
from sparsity_worker.echo.model import write_echo_model
from support.routers.rig import until
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers import echo_worker


def completion(layers: int) -> inference_pb2.Completion:
    report = inference_pb2.SparsityReport(prefill_density=0.3, coverage=0.9, sparse_kernel_calls=6, kernel_calls=8)
    for number in range(layers):
        report.layers.add(prefill_density=number / 10, coverage=1 - number / 10)
    return inference_pb2.Completion(usage=inference_pb2.Usage(prompt_tokens=9, completion_tokens=1), sparsity=report)


def test_layers_are_told_by_thirds_and_load_as_it_is(tmp_path: Path) -> None:
    told = Meter()
    load = Load(7)
    config = WorkerConfig("a", ("dense",), tiny_model(tmp_path))
    metrics = WorkerMetrics(config, ModelFacts("tiny", 100, 10), load, 100, told.meter)
    with load.admit("r", 40):
        load.kv_used_tokens = 25
        metrics.finished(completion(6), Times(0.1, 0.2), inference_pb2.TIER_DENSE, "chat")
        values = told.values()
    found = {
        (name, where.get("sparsity.layers") or where.get("sparsity.kernel.kind")): value
        for name, points in values.items()
        for where, value in points
    }
    density = [found["sparsity.worker.layer.density", name] for name in ("first", "middle", "last")]
    assert density == pytest.approx([0.05, 0.25, 0.45])
    assert found["sparsity.worker.layer.coverage", "last"] == pytest.approx(0.55)
    assert found["sparsity.worker.kernel.calls", "sparse"] == 6
    assert found["sparsity.worker.kernel.calls", "dense"] == 2
    assert found["sparsity.worker.requests", None] == 1
    assert found["sparsity.worker.requests.limit", None] == 7
    assert found["sparsity.worker.outstanding", None] == 40
    assert found["sparsity.worker.kv_use", None] == 0.25


async def test_a_request_that_failed_is_timed_with_its_error(tmp_path: Path) -> None:
    told, model = Meter(), write_echo_model(tmp_path / "echo")
    config, load = WorkerConfig("echo-1", ("moderate",), model, engine="echo"), Load(4)
    metrics = WorkerMetrics(config, ModelFacts.read(model), load, 100, told.meter)
    async with echo_worker.echo(model, metrics=metrics) as stub:
        await echo_worker.answer(stub, echo_worker.request("hi"))
        left = stub.Generate(echo_worker.request("hi " * 300, 900))
        assert await left.read()
        left.cancel()
        await until(lambda: len(told.values()["gen_ai.server.request.duration"]) == 2)
    found = told.values()["gen_ai.server.request.duration"]
    errors = [where.pop("error.type", None) for where, _ in found]
    assert errors == [None, "CANCELLED"]
    own = {"gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "sparsity", "sparsity.tier": "moderate"}
    assert all(own.items() <= where.items() for where, _ in found)


def test_each_tier_has_its_series_and_what_they_share_is_told_of_each(tmp_path: Path) -> None:
    told, load = Meter(), Load(7)
    config = WorkerConfig("a", ("dense", "aggressive"), tiny_model(tmp_path), engine="echo")
    metrics = WorkerMetrics(config, ModelFacts("tiny", 100, 10), load, 100, told.meter)
    dense, aggressive = inference_pb2.TIER_DENSE, inference_pb2.TIER_AGGRESSIVE
    with pytest.raises(ZeroDivisionError), load.admit("gone", 9, aggressive):
        raise ZeroDivisionError
    with load.admit("a", 40, aggressive), load.admit("b", 50, aggressive), load.admit("c", 7, dense):
        load.kv_used_tokens = 25
        metrics.finished(completion(3), Times(0.1, 0.2), aggressive, "chat")
        values = told.values()
    found = {
        (name.removeprefix("sparsity.worker."), where["sparsity.tier"]): value
        for name, points in values.items()
        for where, value in points
        if where.get("sparsity.layers") in (None, "first") and where.get("sparsity.kernel.kind") in (None, "sparse")
    }
    wanted = {
        "requests": (1, 2), "outstanding": (7, 90), "aborted": (0, 1), "requests.limit": (7, 7), "kv_use": (0.25, 0.25),
        "draining": (0, 0),
    }  # fmt: skip
    for name, values_by_tier in wanted.items():
        assert tuple(found[name, tier] for tier in ("dense", "aggressive")) == values_by_tier, name
    assert found["kernel.calls", "aggressive"] == 6
    assert ("layer.density", "aggressive") in found
    assert ("layer.density", "dense") not in found


@pytest.mark.parametrize(("layers", "sizes"), [(0, []), (1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])])
def test_thirds_hold_every_layer_once(layers: int, sizes: list[int]) -> None:
    assert [len(group) for _, group in _thirds(completion(layers).sparsity.layers)] == sizes
