"""The HTTP door by LangChain and by LiteLLM, in environments of their own, as their users write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.frameworks import interpreter, said_by
from support.http_door import http_door
from support.rig import LONG

# The first time, they are installed.
pytestmark = pytest.mark.timeout(900)
LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI
url, model, prompt = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="any", model=model, default_headers={"x-sparsity-domain": "low"})
answer = chat.invoke(prompt)
pieces = list(chat.stream([("system", "Be brief."), ("human", prompt)]))
reason = answer.response_metadata["finish_reason"]
print(json.dumps([answer.content, reason, "".join(piece.content for piece in pieces), len(pieces)]))
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
print(json.dumps([answer.message.content, answer.finish_reason, "".join(pieces), refused]))
"""


async def test_langchain(tmp_path: Path) -> None:
    python = interpreter("langchain-openai==1.7.4")
    async with http_door(tmp_path) as door:
        whole, reason, streamed, count = await said_by(python, LANGCHAIN, f"{door.url}/v1", door.model, LONG)
        assert (whole, reason, streamed) == ("abc", "length", "abc")
        assert count >= 3, "it came in pieces"
        assert len(door.workers[-1].received) == 2, "its header reached policy"


async def test_litellm(tmp_path: Path) -> None:
    python = interpreter("litellm==1.106.0")
    async with http_door(tmp_path) as door:
        whole, reason, streamed, refused = await said_by(python, LITELLM, f"{door.url}/v1", door.model, LONG)
        assert (whole, reason, streamed) == ("abc", "length", "abc")
        assert "x-sparsity-max-tier: must be one of dense, moderate, aggressive" in refused
        assert len(door.workers[-1].received) == 2
