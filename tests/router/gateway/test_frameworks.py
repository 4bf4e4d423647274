"""The HTTP door by LangChain and by LiteLLM, in environments of their own, as their users write it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from support.frameworks import interpreter, said_by
from support.routers.http_door import http_door
from support.routers.rig import DENSE, LONG
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

# The first time, they are installed.
pytestmark = pytest.mark.timeout(900)
LANGCHAIN = """
import json, sys
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI
url, model, prompt = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="any", model=model, default_headers={"x-sparsity-domain": "low"})
answer = chat.invoke(prompt)
pieces = list(chat.stream([("system", "Be brief."), ("human", prompt)]))
reason = answer.response_metadata["finish_reason"]
try:
    chat.invoke("y" * 5000)
    refused = ""
except ContextOverflowError as error:
    refused = str(error)
print(json.dumps([answer.content, reason, "".join(piece.content for piece in pieces), len(pieces), refused]))
"""
LANGCHAIN_TOOLS = """
import json, sys
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
class Weather(BaseModel):
    city: str
    degrees: int
def weather(city: str) -> str:
    'Of a city.'
url, model, prompt = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="any", model=model)
# As its structured output by calls binds them.
called = chat.bind_tools([weather], parallel_tool_calls=False).invoke(prompt).tool_calls
parts = None
for part in chat.bind_tools([weather]).stream(prompt):
    parts = part if parts is None else parts + part
parsed = chat.with_structured_output(Weather, method="json_schema").invoke(prompt)
print(json.dumps([[call["args"] for call in called], [call["args"] for call in parts.tool_calls], parsed.model_dump()]))
"""
LITELLM_TOOLS = """
import json, os, sys
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
import litellm
url, model, prompt = sys.argv[1:]
tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": {"type": "object"}, "strict": True}}
asked = dict(model=f"openai/{model}", api_base=url, api_key="any", messages=[{"role": "user", "content": prompt}])
called = litellm.completion(tools=[tool], tool_choice="required", **asked).choices[0].message.tool_calls
chunks = list(litellm.completion(tools=[tool], stream=True, **asked))
parts = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
parsed = litellm.completion(response_format=schema, **asked).choices[0].message.content
read = lambda calls: [json.loads(call.function.arguments) for call in calls]
print(json.dumps([read(called), read(parts), json.loads(parsed)]))
"""
LITELLM = """
import json, os, sys
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
import litellm
url, model, prompt = sys.argv[1:]
asked = dict(model=f"openai/{model}", api_base=url, api_key="any", messages=[{"role": "user", "content": prompt}],
             extra_headers={"x-sparsity-domain": "low"})
answer = litellm.completion(**asked).choices[0]
pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(stream=True, **asked)]
try:
    litellm.completion(**asked | {"temperature": 1.5, "extra_headers": {"x-sparsity-max-tier": "thick"}})
    refused = ""
except litellm.BadRequestError as error:
    refused = str(error)
try:
    litellm.completion(**asked | {"messages": [{"role": "user", "content": "y" * 5000}]})
    long = ""
except litellm.ContextWindowExceededError as error:
    long = str(error)
print(json.dumps([answer.message.content, answer.finish_reason, "".join(pieces), refused, long]))
"""


async def called_or_jotted(worker: FakeWorker, request: Any, context: Any) -> AsyncIterator[Any]:
    """A call of a tool in two parts, or what a schema is for."""
    reason = inference_pb2.FINISH_REASON_STOP
    if request.sampling.HasField("response_format"):
        yield inference_pb2.GenerateResponse(text='{"city": "Bonn", "degrees": 7}', token_ids=[1])
    else:
        reason = inference_pb2.FINISH_REASON_TOOL_CALLS
        for part in ({"id": "c-1", "name": "weather", "arguments": '{"city":'}, {"arguments": ' "Bonn"}'}):
            yield inference_pb2.GenerateResponse(tool_calls=[inference_pb2.ToolCallDelta(**part)], token_ids=[1])
    yield inference_pb2.GenerateResponse(completion=inference_pb2.Completion(finish_reason=reason))


@pytest.mark.parametrize(
    ("packages", "script"),
    # LiteLLM imports mcp for tools, and does not ask for it.
    [(("langchain-openai==1.7.4",), LANGCHAIN_TOOLS), (("litellm==1.106.0", "mcp==2.3.0"), LITELLM_TOOLS)],
)
async def test_tools_and_schemas(tmp_path: Path, packages: tuple[str, ...], script: str) -> None:
    python = interpreter(*packages)
    worker = FakeWorker("d", DENSE, tiny_model(tmp_path / "model"), behaviour=called_or_jotted)
    async with http_door(tmp_path, worker) as door:
        called, streamed, parsed = await said_by(python, script, f"{door.url}/v1", door.model, "hi")
        assert called == streamed == [{"city": "Bonn"}]
        assert parsed == {"city": "Bonn", "degrees": 7}


async def test_langchain(tmp_path: Path) -> None:
    python = interpreter("langchain-openai==1.7.4")
    async with http_door(tmp_path) as door:
        whole, reason, streamed, count, refused = await said_by(python, LANGCHAIN, f"{door.url}/v1", door.model, LONG)
        assert (whole, reason, streamed) == ("abc", "length", "abc")
        assert count >= 3, "it came in pieces"
        assert "maximum context length is 4096" in refused
        assert len(door.workers[-1].received) == 2, "its header reached policy"


async def test_litellm(tmp_path: Path) -> None:
    python = interpreter("litellm==1.106.0")
    async with http_door(tmp_path) as door:
        whole, reason, streamed, refused, long = await said_by(python, LITELLM, f"{door.url}/v1", door.model, LONG)
        assert (whole, reason, streamed) == ("abc", "length", "abc")
        assert "x-sparsity-max-tier: must be one of dense, moderate, aggressive" in refused
        assert "maximum context length is 4096" in long
        assert len(door.workers[-1].received) == 2
