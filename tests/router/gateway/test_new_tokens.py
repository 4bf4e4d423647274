"""How long an answer may get whose caller does not say: as both doors give it to the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity_client.wire import make_request
from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.fields.defaults import Defaults
from support.routers.http_door import http_door
from support.routers.rig import DENSE
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

# Of the door's model, and of `[user]hi[assistant]`.
CONTEXT, PROMPT = 4096, 19


@pytest.mark.parametrize(
    ("options", "generation", "kv", "least", "most"),
    [
        ({}, {}, 0, CONTEXT // 2, CONTEXT - PROMPT),
        ({"default_new_tokens": 0}, {}, 0, CONTEXT // 2, CONTEXT - PROMPT),
        ({"default_new_tokens": 50}, {}, 0, 50, 50),
        ({"default_new_tokens": 50}, {"max_new_tokens": 77}, 0, 77, 77),
        ({}, {"max_new_tokens": 10**6}, 0, CONTEXT // 2, CONTEXT - PROMPT),
        ({}, {}, 200, 100, 200 - PROMPT),
        ({"limits": "default: {tokens: 4000/minute}"}, {}, 0, 500, 500),
        ({"limits": "default: {tokens: 400/minute}"}, {}, 0, 128, 128),
        ({"limits": "default: {tokens: 10/minute}"}, {}, 0, 0, 0),
    ],
)
async def test_what_is_left_bounds_it(
    tmp_path: Path, options: dict[str, Any], generation: dict[str, Any], kv: int, least: int, most: int
) -> None:
    model = tiny_model(tmp_path / "model", CONTEXT)
    (model / "generation_config.json").write_text(json.dumps(generation))
    if "limits" in options:
        (tmp_path / "limits.yaml").write_text(options["limits"])
        options = {"tenant_limits": tmp_path / "limits.yaml"}
    worker = FakeWorker("d", DENSE, model, kv_capacity=kv)
    async with http_door(tmp_path, worker, **options) as door:
        if not most:
            # A prompt that is too long by itself is refused, as ever.
            assert (await door.chat()).status_code == 429
            return
        assert (await door.chat()).status_code == 200
        assert least <= worker.received[-1].sampling.max_new_tokens <= most
        assert (await door.chat(max_tokens=7)).status_code == 200
        assert worker.received[-1].sampling.max_new_tokens == 7
        request = make_request("hi", domain="low")
        _ = [each async for each in door.router.inference.Generate(request)]
        assert least <= worker.received[-1].sampling.max_new_tokens <= most + PROMPT


async def test_a_long_prompt_leaves_as_much_as_there_is(tmp_path: Path) -> None:
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model", CONTEXT))
    async with http_door(tmp_path, worker) as door:
        assert (await door.chat("y" * (CONTEXT - 100))).status_code == 200
        assert 1 <= worker.received[-1].sampling.max_new_tokens <= 100 - PROMPT + len("hi")


def test_a_number_that_is_none_is_told(tmp_path: Path) -> None:
    for value in (0, -1, "many"):
        (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": value}))
        with pytest.raises(ConfigurationError, match=r"generation_config\.json"):
            Defaults.read(tmp_path)
