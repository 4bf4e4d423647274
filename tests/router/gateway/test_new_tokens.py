"""How long an answer may get whose caller does not say: as both doors give it to the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import worker_pb2
from sparsity_client.wire import make_request
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_serving.fields.defaults import Defaults
from sparsity_worker.calls.requests import engine_request
from sparsity_worker.config import ModelFacts
from support.routers.http_door import http_door
from support.routers.rig import DENSE
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

# Of the door's model.
CONTEXT = 4096


@pytest.mark.parametrize(
    ("options", "generation", "most"),
    [
        ({}, {}, CONTEXT),
        ({"default_new_tokens": 0}, {}, CONTEXT),
        ({"default_new_tokens": 50}, {}, 50),
        ({"default_new_tokens": 50}, {"max_new_tokens": 77}, 77),
        ({}, {"max_new_tokens": 10**6}, CONTEXT),
        ({"limits": "default: {tokens: 4000/minute}"}, {}, 500),
        ({"limits": "default: {tokens: 400/minute}"}, {}, 128),
        ({"limits": "default: {tokens: 10/minute}"}, {}, None),
    ],
)
async def test_the_worker_is_told_how_long_an_unsaid_answer_may_get(
    tmp_path: Path, options: dict[str, Any], generation: dict[str, Any], most: int | None
) -> None:
    model = tiny_model(tmp_path / "model", CONTEXT)
    (model / "generation_config.json").write_text(json.dumps(generation))
    if "limits" in options:
        (tmp_path / "limits.yaml").write_text(options["limits"])
        options = {"tenant_limits": tmp_path / "limits.yaml"}
    worker = FakeWorker("d", DENSE, model)
    async with http_door(tmp_path, worker, **options) as door:
        if most is None:
            # A prompt that is too long by itself is refused, as ever.
            assert (await door.chat()).status_code == 429
            return
        assert (await door.chat()).status_code == 200
        assert told(worker) == (None, most)
        assert (await door.chat(max_tokens=7)).status_code == 200
        assert told(worker) == (7, 0)
        _ = [each async for each in door.router.inference.Generate(make_request("hi", domain="low"))]
        assert told(worker) == (None, most)


def told(worker: FakeWorker) -> tuple[int | None, int]:
    """What a worker was told of an answer's length: by its caller, and where that says nothing."""
    request = worker.received[-1]
    sampling = request.sampling
    return sampling.max_new_tokens if sampling.HasField("max_new_tokens") else None, request.default_max_new_tokens


async def test_answers_of_one_call_share_an_eighth_of_its_tenants_rate(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("default: {tokens: 32000/minute}")
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model", CONTEXT))
    async with http_door(tmp_path, worker, tenant_limits=tmp_path / "limits.yaml") as door:
        assert (await door.chat(n=4)).status_code == 200
        assert {request.default_max_new_tokens for request in worker.received} == {1000}


async def test_an_unsaid_length_is_reckoned_as_a_short_one_and_charged_as_it_was(tmp_path: Path) -> None:
    """Else eight callers who say nothing would use up a tenant, and a worker's room, for answers of a few words."""
    (tmp_path / "limits.yaml").write_text("default: {tokens: 3000/minute}")
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model", CONTEXT))
    async with http_door(tmp_path, worker, tenant_limits=tmp_path / "limits.yaml") as door:
        for _ in range(12):
            assert (await door.chat()).status_code == 200


@pytest.mark.parametrize(("prompt", "most"), [(CONTEXT - 100, 100), (10, 300), (CONTEXT - 1, 1)])
def test_the_worker_holds_it_to_what_its_prompt_leaves(prompt: int, most: int) -> None:
    request = worker_pb2.WorkerServiceGenerateRequest(request_id="r", default_max_new_tokens=300)
    facts = ModelFacts("m", CONTEXT, 256)
    assert engine_request(request, [1] * prompt, facts).sampling["max_new_tokens"] == most
    request.sampling.max_new_tokens = 301
    if prompt + 301 <= CONTEXT:
        assert engine_request(request, [1] * prompt, facts).sampling["max_new_tokens"] == 301
    else:
        with pytest.raises(InvalidRequestError, match=r"sampling\.max_new_tokens"):
            engine_request(request, [1] * prompt, facts)


def test_a_number_that_is_none_is_told(tmp_path: Path) -> None:
    for value in (0, -1, "many"):
        (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": value}))
        with pytest.raises(ConfigurationError, match=r"generation_config\.json"):
            Defaults.read(tmp_path)
