"""Echo workers prove nothing and report nothing: they are for routers that were told so, and never for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from sparsity.v1 import inference_pb2
from sparsity_router.config import RouterConfig
from sparsity_router.fleet.workers import State
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.engines import ECHO, SGLANG
from support.routers.rig import AGGRESSIVE, DENSE, LONG, MODERATE, refusal, rig
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path)


def echo(name: str, tier: int, model: Path) -> FakeWorker:
    """As an echo worker is: without proof and without reports."""
    return FakeWorker(name, tier, model, engine=ECHO, sparse_calls=0, reports=False)


def states(r: Any) -> list[State]:
    return [worker.state for worker in r.fleet.workers]


@pytest.mark.parametrize("tier", [DENSE, MODERATE, AGGRESSIVE])
async def test_no_tier_is_served_by_an_echo_unasked(model: Path, tier: int) -> None:
    async with rig(model, echo("e", tier, model)) as r:
        assert states(r) == [State.INCOMPATIBLE]
        assert r.fleet.workers[0].problem == "its engine is echo, and this router takes sglang (--engine)"
        error = await refusal(r.generate("hi"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert r.workers[0].received == []


async def test_a_proof_does_not_make_an_echo_an_engine(model: Path) -> None:
    claims = FakeWorker("e", AGGRESSIVE, model, engine=ECHO)
    async with rig(model, claims, FakeWorker("d", DENSE, model)) as r:
        _, completion = await r.generate(LONG)
        assert completion.worker_id == "d"
        assert completion.decision.reason == inference_pb2.REASON_TIER_UNAVAILABLE


async def test_a_router_that_was_told_so_takes_echoes_without_proof_or_report(model: Path) -> None:
    async with rig(model, echo("d", DENSE, model), echo("a", AGGRESSIVE, model), engine=ECHO) as r:
        for _ in range(2):
            # A report that is missing is no reason to distrust who attends nothing.
            text, completion = await r.generate(LONG)
            assert (text, completion.worker_id) == ("abc", "a")
            assert completion.decision.reason == inference_pb2.REASON_LENGTH_BAND
            assert not completion.HasField("sparsity")
        assert states(r) == [State.READY, State.READY]


@pytest.mark.parametrize("named", ["", SGLANG])
async def test_a_router_of_echoes_takes_nothing_else(model: Path, named: str) -> None:
    async with rig(model, FakeWorker("d", DENSE, model, engine=named), engine=ECHO) as r:
        assert states(r) == [State.INCOMPATIBLE]


def test_an_unknown_engine_is_refused_by_name(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="--engine: must be one of sglang, echo, not 'eco'"):
        RouterConfig(model, ("127.0.0.1:1",), "redis://x", engine="eco")
