"""Calls of tools that servers of stock SGLang write as text: told apart, whatever the pieces, and held to a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_router.fleet.stock.calls import ToolCalls, held_to, reads_calls
from sparsity_rpc.errors import InvalidRequestError
from sparsity_serving.fields.tools import check_tools
from support.routers.rig import refusal, rig
from support.tiny import tiny_model
from support.workers.fake_stock import FakeStock, says

ARGUMENTS = {"city": "Zürich", "days": [1, 2]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': ARGUMENTS})}\n</tool_call>"
REQUIRED = inference_pb2.ToolChoice(mode=inference_pb2.TOOL_CHOICE_MODE_REQUIRED)


def chat(choice: inference_pb2.ToolChoice | None = None) -> worker_pb2.ChatParsing:
    tools = [inference_pb2.Tool(name=name, parameters=json.dumps(SCHEMA)) for name in ("weather", "time")]
    return worker_pb2.ChatParsing(tools=tools, tool_choice=choice)


def told(text: str, sizes: list[int], parsed: worker_pb2.ChatParsing) -> tuple[str, list[tuple[str, Any]]]:
    """What is told apart of a text that comes in pieces."""
    calls, at, found = ToolCalls(parsed), 0, []
    for size in sizes:
        found.append(calls.push(text[at : at + size]))
        at += size
    found += [calls.push(text[at:]), calls.finish()]
    parts = [part for each in found for part in each.calls]
    assert [part.index for part in parts] == list(range(len(parts)))
    assert len({part.id for part in parts}) == len(parts) == calls.count
    return "".join(each.text for each in found), [(part.name, json.loads(part.arguments)) for part in parts]


@given(st.lists(st.integers(0, 12), max_size=40))
def test_calls_are_the_same_whatever_the_pieces(sizes: list[int]) -> None:
    assert told(f"I look. {CALL}\n{CALL}", sizes, chat()) == ("I look. ", [("weather", ARGUMENTS)] * 2)
    assert told("1 < 2 and <tool> is none", sizes, chat()) == ("1 < 2 and <tool> is none", [])


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather", "argu',
        "<tool_call>nonsense</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": 5}</tool_call>',
        "<tool_call>[]</tool_call> and more",
        "it ends in <tool_c",
    ],
)
def test_what_is_no_call_stays_as_it_was_written(text: str) -> None:
    assert told(text, [5, 9], chat()) == (text, [])


def test_a_demanded_call_is_an_array_of_its_tools() -> None:
    whole = json.dumps([{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "time", "arguments": {}}])
    assert told(whole, [7], chat(REQUIRED)) == ("", [("weather", {"city": "Rome"}), ("time", {})])
    for cut in (whole[:-5], "5", "[]"):
        assert told(cut, [3], chat(REQUIRED)) == (cut, [])
    schema = json.loads(held_to(chat(REQUIRED)))
    assert [kind["properties"]["name"]["enum"] for kind in schema["items"]["anyOf"]] == [["weather"], ["time"]]
    assert schema["items"]["anyOf"][0]["properties"]["arguments"] == SCHEMA
    named = json.loads(held_to(chat(inference_pb2.ToolChoice(name="time"))))
    assert (named["maxItems"], len(named["items"]["anyOf"])) == (1, 1)
    assert held_to(chat()) == ""


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        ("{{ messages }}", True),
        ('{% if tools %}<tool_call>{"name": <function-name>, "arguments": {}}</tool_call>{% endif %}', True),
        ("{% if tools %}<tool_call><function=name></tool_call> arguments{% endif %}", False),
        ("{% if tools %}<tool_call>name<arg_key> arguments{% endif %}", False),
        ("{% if tools %}[TOOL_CALLS] arguments{% endif %}", False),
    ],
)
def test_the_form_is_told_by_the_template(template: str, reads: bool) -> None:
    assert reads_calls(template) is reads


async def test_a_stock_server_calls_tools(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", 4096)
    server = await FakeStock(model, says(CALL, at_once=3)).start()
    try:
        async with rig(model, places=(server.address,)) as r:
            message = inference_pb2.ChatMessage(role="user", content="How is the weather?")
            request = inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(messages=[message]))
            request.tools.extend(chat().tools)
            found = [each async for each in r.stub.Generate(request, timeout=10.0)]
            (part,) = [part for each in found for part in each.tool_calls]
            assert (part.name, json.loads(part.arguments)) == ("weather", ARGUMENTS)
            assert "".join(each.text for each in found) == ""
            assert found[-1].completion.finish_reason == inference_pb2.FINISH_REASON_TOOL_CALLS
            assert server.received[0].sampling_params.WhichOneof("constraint") is None
            request.tools[0].strict = True
            error = await refusal(_read(r.stub.Generate(request, timeout=10.0)))
            assert "tools: calls that are held to their parameters" in error.details()
            request.tool_choice.CopyFrom(REQUIRED)
            request.tools[0].parameters = json.dumps({"type": "object", "properties": {"a": {"pattern": "a+"}}})
            error = await refusal(_read(r.stub.Generate(request, timeout=10.0)))
            assert "tools: calls that are held to expressions" in error.details()
            request.tools[0].parameters = json.dumps(SCHEMA | {"required": ["a\0"]})
            error = await refusal(_read(r.stub.Generate(request, timeout=10.0)))
            assert "tools[0].parameters: have a character 0" in error.details()
            request.tools[0].parameters = json.dumps(SCHEMA)
            server.behaviour = says(json.dumps([{"name": "time", "arguments": {"city": "Rome"}}]))
            found = [each async for each in r.stub.Generate(request, timeout=10.0)]
            (part,) = [part for each in found for part in each.tool_calls]
            assert part.name == "time"
            assert json.loads(server.received[1].sampling_params.json_schema)["type"] == "array"
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("document", "refused"),
    [
        ({"enum": ["a\0b"]}, True),
        ({"properties": {"\0": {}}}, True),
        ({"const": {"a": [[{"b": "\0"}]]}}, True),
        ({"enum": ["\\u0000"]}, False),
        (SCHEMA, False),
    ],
)
def test_no_character_0_comes_to_a_grammar(document: dict[str, Any], refused: bool) -> None:
    """Grammars end an engine's process at one."""
    tools = [inference_pb2.Tool(name="a"), inference_pb2.Tool(name="b", parameters=json.dumps(document))]
    if not refused:
        check_tools(tools, REQUIRED, formatted=False)
        return
    with pytest.raises(InvalidRequestError, match=r"chat.tools\[1\].parameters: have a character 0"):
        check_tools(tools, REQUIRED, formatted=False, prefix="chat.")


async def _read(call: Any) -> list[Any]:
    return [each async for each in call]
