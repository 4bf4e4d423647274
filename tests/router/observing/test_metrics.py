from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_policies.decisions.costs import NO_SHAPES, ModelShape, Shapes
from sparsity_policies.decisions.decide import decide
from sparsity_policies.model import Decision, Reason, Signals, Tier
from sparsity_router.observing.fleet_metrics import observe_fleets
from sparsity_router.observing.observer import EndedRequest
from sparsity_router.observing.request_metrics import RequestMetrics
from sparsity_router.processes.shared_port import _own
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.metrics.metering import Times, configure_metrics
from support.routers.rig import AGGRESSIVE, DENSE, MODERATE, rig, until
from support.stores.snapshots import snapshot
from support.telemetry.metrics import Meter
from support.tiny import tiny_model
from support.workers.fake_worker import Behaviour, FakeWorker, answer, fail, hang

SHAPE = ModelShape(layers=2, query_heads=4, kv_heads=2, head_dim=8)


def decision(tokens: int = 5000, domain: str = "rag") -> Decision:
    return decide(Signals(min_tokens=tokens, max_tokens=tokens, domain=domain), snapshot())


def completion(tier: Tier, prompt: int, cached: int, new: int, density: float = 0.25) -> inference_pb2.Completion:
    report = inference_pb2.SparsityReport(
        tier=tier.value,  # type: ignore[arg-type]
        prefill_density=density,
        decode_density=2 * density if density < 0.5 else 1,
        coverage=0.9,
    )
    usage = inference_pb2.Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=new)
    return inference_pb2.Completion(usage=usage, sparsity=report)


def test_an_answer_is_counted_timed_and_reckoned() -> None:
    found = Meter()
    metrics = RequestMetrics(Shapes({"tiny": SHAPE}), found.meter)
    given = decision()
    assert given.tier is Tier.AGGRESSIVE
    metrics.relayed(given, snapshot().policies["rag"].policy, given, completion(given.tier, 10, 4, 3), Times(0.5, 1.5))
    values = found.values()
    where = {"sparsity.domain": "rag", "sparsity.tier": "aggressive"}
    labels = {**where, "sparsity.reason": "LENGTH_BAND", "sparsity.risk": "low"}
    assert values["sparsity.router.decisions"] == [(labels, 1)]
    assert values["sparsity.router.policy.violations"] == [({}, 0)]
    # 10 tokens have 55 causal pairs, 4 cached ones 10 of them; 3 new ones have 3 * 10 + 6.
    prompt, new, per_pair, bytes_a_pair = 45, 36, 4 * 2 * 4 * 8, 2 * 2 * 8 * 2 * 2
    took = prompt * 0.25 + new * 0.5
    assert values["sparsity.attention.flops"] == [(where, per_pair * took)]
    assert values["sparsity.attention.flops.saved"] == [(where, per_pair * (prompt + new - took))]
    assert values["sparsity.attention.kv_read"] == [(where, bytes_a_pair * new * 0.5)]
    assert values["sparsity.attention.kv_read.saved"] == [(where, bytes_a_pair * new * 0.5)]
    saved = per_pair * (prompt + new - took) / 6e14 + bytes_a_pair * new * 0.5 / 2.9e12
    assert values["sparsity.gpu.time.saved"] == [(where, pytest.approx(saved))]
    seen = {name: points[0][1] for name, points in values.items() if name.startswith("gen_ai")}
    assert seen == {
        "gen_ai.server.request.duration": 1.5,
        "gen_ai.server.time_to_first_token": 0.5,
        "gen_ai.server.time_per_output_token": 0.5,
    }
    tokens = {attributes["sparsity.token.kind"]: value for attributes, value in values["sparsity.tokens"]}
    assert tokens == {"prompt": 10, "cached": 4, "new": 3}


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [(answer, None), (fail(grpc.StatusCode.INVALID_ARGUMENT, 1), "INVALID_ARGUMENT"), (hang, "CANCELLED")],
)
async def test_every_request_is_timed_by_what_it_asked_for_and_how_it_ended(
    tmp_path: Path, behaviour: Behaviour, error: str | None
) -> None:
    found, ended = Meter(), list[EndedRequest]()
    metrics = RequestMetrics(NO_SHAPES, found.meter)

    def told(request: EndedRequest) -> None:
        ended.append(request)
        given, served, times = request.decision, request.served, request.times
        asked = {"model": request.signals.model, "operation": request.operation, "error": request.error}
        metrics.relayed(given, None, served, request.completion, times, **asked)

    observer = SimpleNamespace(ended=told, classified=lambda decided: None)
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path), behaviour=behaviour)
    async with rig(tmp_path, worker, observer=observer) as router:
        asked = asyncio.create_task(router.generate())
        if behaviour is hang:
            await until(lambda: worker.received)
            asked.cancel()
        await asyncio.wait({asked})
        assert error is None or asked.cancelled() or asked.exception()
        await until(lambda: ended)
    ((labels, seconds),) = found.values()["gen_ai.server.request.duration"]
    assert seconds > 0
    assert (labels["gen_ai.operation.name"], labels["gen_ai.provider.name"]) == ("text_completion", "sparsity")
    assert labels["gen_ai.request.model"] == "tiny"
    assert labels.get("error.type") == error
    assert ("gen_ai.server.time_to_first_token" in found.values()) == (error is None)


def test_less_attention_than_policy_gave_is_a_violation_whoever_says_it() -> None:
    found = Meter()
    metrics = RequestMetrics(Shapes({"tiny": SHAPE}), found.meter)
    given = decision(domain="medical")
    policy = snapshot().policies["medical"].policy
    assert given.tier is Tier.DENSE
    metrics.relayed(given, policy, given, completion(Tier.DENSE, 10, 0, 1, density=1.0), Times(0.1, 0.1))
    assert found.values()["sparsity.router.policy.violations"] == [({}, 0)]
    metrics.relayed(given, policy, given, completion(Tier.MODERATE, 10, 0, 1, density=1.0), Times(0.1, 0.1))
    metrics.relayed(given, policy, given, completion(Tier.DENSE, 10, 0, 1, density=0.9), Times(0.1, 0.1))
    metrics.relayed(given, policy, replace(given, tier=Tier.AGGRESSIVE), None, None)
    assert ({"sparsity.domain": "medical"}, 3) in found.values()["sparsity.router.policy.violations"]


def test_more_attention_than_policy_gave_is_none_and_nobody_is_told() -> None:
    found = Meter()
    metrics = RequestMetrics(NO_SHAPES, found.meter)
    given = decision()
    denser = replace(given, tier=Tier.DENSE, reason=Reason.TIER_UNAVAILABLE)
    metrics.relayed(given, None, denser, completion(Tier.DENSE, 10, 0, 1), Times(None, 0.1))
    metrics.relayed(given, None, None, None, None)
    values = found.values()
    assert values["sparsity.router.policy.violations"] == [({}, 0)]
    told = {
        (a["sparsity.tier"], a["sparsity.reason"], a["sparsity.risk"]) for a, _ in values["sparsity.router.decisions"]
    }
    assert told == {("dense", "TIER_UNAVAILABLE", "unknown"), ("none", "LENGTH_BAND", "unknown")}
    assert "sparsity.attention.flops" not in values
    assert "gen_ai.server.time_to_first_token" not in values


def test_what_was_wanted_is_told_of_tiers_that_nobody_serves() -> None:
    found = Meter()
    metrics = RequestMetrics(Shapes({"tiny": SHAPE, "unknown": None}), found.meter)

    def wanted() -> dict[tuple[str, str], float]:
        values = found.values()["sparsity.router.wanted"]
        return {(where["gen_ai.request.model"], where["sparsity.tier"]): count for where, count in values}

    before = {(model, tier.word): 0 for model in ("tiny", "unknown") for tier in Tier}
    assert wanted() == before
    given = replace(decision(), tier=Tier.AGGRESSIVE)
    denser = replace(given, tier=Tier.DENSE, reason=Reason.TIER_UNAVAILABLE)
    metrics.relayed(given, None, denser, None, None, model="unknown")
    metrics.relayed(given, None, None, None, None, model="unknown")
    assert wanted() == before | {("unknown", "aggressive"): 2}


def test_a_domain_of_the_callers_making_makes_no_series() -> None:
    found = Meter()
    metrics = RequestMetrics(Shapes({"tiny": SHAPE}), found.meter)
    for number in range(50):
        given = decision(domain=f"made-up-{number}")
        metrics.relayed(given, None, given, None, None)
    assert len(found.values()["sparsity.router.decisions"]) == 1


async def test_the_fleet_is_seen_as_it_is(tmp_path: Path) -> None:
    found = Meter()
    model = tiny_model(tmp_path)
    async with rig(tmp_path, FakeWorker("d", DENSE, model), FakeWorker("a", AGGRESSIVE, model)) as router:
        observe_fleets({"tiny": router.fleet}, found.meter)
        await router.generate()
        values = found.values()
        states = {(a["sparsity.tier"], a["sparsity.worker.state"]): v for a, v in values["sparsity.router.workers"]}
        assert states["dense", "ready"] == states["aggressive", "ready"] == 1
        assert states["moderate", "ready"] == states["dense", "full"] == 0
        assert [value for _, value in values["sparsity.router.waiting"]] == [0, 0, 0]
        workers = {attributes["sparsity.worker.id"] for attributes, _ in values["sparsity.router.in_flight"]}
        assert workers == {"d", "a"}
        router.fleet.workers[0].breakers[Tier.DENSE]._open_until = float("inf")
        router.fleet.retries.spend()
        values = found.values()
        assert sum(value for _, value in values["sparsity.router.breaker.open"]) == 1
        assert values["sparsity.router.retries"][0][1] == 1


async def test_each_model_has_series_of_its_own(tmp_path: Path) -> None:
    found = Meter()
    async with (
        rig(tmp_path / "a", FakeWorker("d", DENSE, tiny_model(tmp_path / "a"))) as one,
        rig(tmp_path / "b") as no,
    ):
        observe_fleets({"one": one.fleet, "none": no.fleet}, found.meter)
        no.fleet.retries.spend()
        values = found.values()
    model, ready = "gen_ai.request.model", {"sparsity.tier": "dense", "sparsity.worker.state": "ready"}
    states = values["sparsity.router.workers"]
    assert {a[model]: value for a, value in states if ready.items() <= a.items()} == {"one": 1, "none": 0}
    assert [a[model] for a, _ in values["sparsity.router.waiting"]] == ["one"] * 3 + ["none"] * 3
    assert {a[model]: value for a, value in values["sparsity.router.retries"]} == {"one": 0, "none": 1}
    assert [a[model] for a, _ in values["sparsity.router.in_flight"]] == ["one"]


def test_attention_is_reckoned_by_the_shape_of_the_model_that_answered() -> None:
    found, given = Meter(), decision()
    wide = replace(SHAPE, layers=2 * SHAPE.layers)
    metrics = RequestMetrics(Shapes({"tiny": SHAPE, "wide": wide, "unknown": None}), found.meter)
    flops = []
    for model in ("tiny", "wide", "unknown"):
        answered = completion(given.tier, 10, 0, 1)
        metrics.relayed(given, None, given, answered, Times(0.1, 0.2), model=model)
        flops.append(found.values()["sparsity.attention.flops"][0][1])
    assert flops[1] == pytest.approx(3 * flops[0])
    assert flops[2] == flops[1]
    timed = found.values()["gen_ai.server.request.duration"]
    assert [attributes["gen_ai.request.model"] for attributes, _ in timed] == ["tiny", "wide", "unknown"]


async def test_a_shared_worker_is_counted_at_each_of_its_tiers(tmp_path: Path) -> None:
    found = Meter()
    tiers = (DENSE, MODERATE, AGGRESSIVE)
    worker = FakeWorker("s", DENSE, tiny_model(tmp_path), tiers=tiers, unproven=(MODERATE,), behaviour=hang)
    async with rig(tmp_path, worker) as router:
        observe_fleets({"tiny": router.fleet}, found.meter)
        router.fleet.workers[0].breakers[Tier.MODERATE]._open_until = float("inf")
        asked = asyncio.create_task(router.generate())
        await until(lambda: router.fleet.workers[0].in_flight)
        values = found.values()
        states = {(a["sparsity.tier"], a["sparsity.worker.state"]): v for a, v in values["sparsity.router.workers"]}
        assert states["dense", "ready"] == states["moderate", "unproven"] == states["aggressive", "ready"] == 1
        flying = {a["sparsity.tier"]: v for a, v in values["sparsity.router.in_flight"]}
        assert flying == {"dense": 0, "moderate": 0, "aggressive": 1}
        open_at = {a["sparsity.tier"]: v for a, v in values["sparsity.router.breaker.open"]}
        assert open_at == {"dense": 0, "moderate": 1, "aggressive": 0}
        asked.cancel()


def test_processes_of_one_port_have_metrics_of_their_own() -> None:
    given = {"--metrics-listen": "0.0.0.0:9464", "--health-listen": None, "--other": "[::1]:1"}
    assert _own(given, 0) == ["--metrics-listen", "0.0.0.0:9464", "--other", "[::1]:1"]
    assert _own(given, 2) == ["--metrics-listen", "0.0.0.0:9466", "--other", "[::1]:3"]
    with pytest.raises(ConfigurationError, match="--other: must be host:port"):
        _own({"--other": "nonsense"}, 0)


def test_an_address_that_will_not_do_is_told() -> None:
    for listen in ("nonsense", "127.0.0.1:0", "127.0.0.1:99999", ":9464"):
        with pytest.raises(ConfigurationError, match="--metrics-listen: must be host:port"):
            configure_metrics("test", listen, disabled=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="--metrics-listen: cannot listen on"):
            configure_metrics("test", address, disabled=False)


def test_an_unknown_exporter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "pigeon")
    with pytest.raises(ConfigurationError, match="must be otlp, console or none, not 'pigeon'"):
        configure_metrics("test", None, disabled=False)
