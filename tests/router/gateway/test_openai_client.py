"""The HTTP door by OpenAI's own client, as somebody writes it who knows nothing of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.routers.http_door import http_door
from support.routers.rig import LONG

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


async def test_a_chat_in_one_piece(tmp_path: Path) -> None:
    async with http_door(tmp_path) as door, door.client() as client:
        raw = await client.chat.completions.with_raw_response.create(model=door.model, messages=HI)
        answer = raw.parse()
        assert answer.object == "chat.completion"
        assert answer.model == door.model
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == "abc"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        told: Any = answer.model_extra
        assert answer.id == f"chatcmpl-{told['sparsity']['decision_id']}"
        assert raw.headers["x-sparsity-decision-id"] == told["sparsity"]["decision_id"]
        # Without a domain, everything is dense.
        assert (raw.headers["x-sparsity-tier"], raw.headers["x-sparsity-reason"]) == ("dense", "unknown_domain")
        assert (told["sparsity"]["tier"], told["sparsity"]["reason"]) == ("dense", "unknown_domain")
        assert told["sparsity"]["report"]["prefill_density"] == 1.0


async def test_a_stream(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"metadata": {"domain": "low"}, "stream_options": {"include_usage": True}}
    async with http_door(tmp_path) as door, door.client() as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": LONG}]
        stream = await client.chat.completions.create(model=door.model, messages=messages, stream=True, **asked)
        assert stream.response.headers["x-sparsity-tier"] == "aggressive"
        chunks = [chunk async for chunk in stream]
        assert {(chunk.object, chunk.id) for chunk in chunks} == {("chat.completion.chunk", chunks[0].id)}
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == ["a", "b", "c"]
        assert chunks[4].choices[0].finish_reason == "length"
        ended: Any = chunks[4].model_extra
        assert ended["sparsity"]["tier"] == "aggressive"
        assert ended["sparsity"]["report"]["prefill_density"] == 0.2
        assert chunks[5].choices == []
        assert chunks[5].usage is not None
        assert len(chunks) == 6


async def test_a_text_and_its_tokens(tmp_path: Path) -> None:
    async with http_door(tmp_path) as door, door.client() as client:
        answer = await client.completions.create(model=door.model, prompt="hi", max_tokens=7, stop=["x", "y"])
        assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
            "text_completion",
            "abc",
            "length",
        )
        sampling = door.workers[0].received[-1].sampling
        assert (sampling.max_new_tokens, list(sampling.stop)) == (7, ["x", "y"])
        await client.completions.create(model=door.model, prompt=[[104, 105]])
        assert list(door.workers[0].received[-1].prompt.ids) == [104, 105]
        stream = await client.completions.create(model=door.model, prompt="hi", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "abc"


async def test_the_models(tmp_path: Path) -> None:
    async with http_door(tmp_path) as door, door.client() as client:
        assert [model.id async for model in client.models.list()] == [door.model]
        assert (await client.models.retrieve(door.model)).id == door.model
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("another")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="another", messages=HI)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
