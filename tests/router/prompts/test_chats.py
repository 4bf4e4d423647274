"""Chats as models read them: roles, tools, calls, variables of templates; all of it scanned, counted and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_client import CalledTool, Message, Request, Tool, ToolCall
from sparsity_client.wire.requests import to_message
from sparsity_policies.documents.document import parse_policy
from sparsity_router.prompts.chats.chat import read_chat
from sparsity_router.prompts.chats.template import ChatTemplate
from sparsity_router.prompts.classify import Classifier
from sparsity_router.prompts.tokens import ModelTokenizer
from sparsity_rpc.errors import InvalidRequestError
from support.stores.snapshots import snapshot
from support.tiny import tiny_model

WEATHER = Tool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
TALKS_TOOLS = """
{%- if tools %}[tools]{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif -%}
{%- for m in messages %}[{{ m.role }}]{{ m.reasoning_content }}{{ m.content }}
{%- for call in m.tool_calls %}({{ call.id }} {{ call.function.name }} {{ call.function.arguments.city }}){% endfor %}
{%- generation %}{{ m.tool_call_id }}{% endgeneration %}{% endfor -%}
{%- if enable_thinking is defined and not enable_thinking %}[no thoughts]{% endif %}{{ reasoning_effort }}[assistant]
"""


def plain(text: str) -> str:
    return text


def rendered(template: str, request: Request) -> str:
    return ChatTemplate(template, {}).render(read_chat(to_message(request)), plain).strip()


TURNS = (
    Message("developer", "Be brief."),
    Message("user", "Weather in Rom?"),
    Message("assistant", "", (ToolCall("c1", "weather", '{"city": "Rom"}'),), reasoning="(look)"),
    Message("tool", "sunny", tool_call_id="c1", name="weather"),
)


def test_a_template_that_knows_tools_gets_them() -> None:
    shown = json.dumps({"type": "function", "function": {"name": "weather", "description": "Tells the weather.",
                        "parameters": WEATHER.parameters}})  # fmt: skip
    expected = (
        f"[tools]{shown}[system]Be brief.[user]Weather in Rom?[assistant](look)(c1 weather Rom)[tool]sunnyc1[assistant]"
    )
    assert rendered(TALKS_TOOLS, Request(TURNS, tools=(WEATHER,))) == expected
    assert rendered(TALKS_TOOLS, Request("hi", tools=(WEATHER,), tool_choice="none")) == "[user]hi[assistant]"
    assert rendered("{# developer #}{{ messages[0].role }}{{ tools }}", Request(TURNS)) == "developerNone"


def test_for_a_template_that_knows_none_they_are_written_out(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(tiny_model(tmp_path))
    text = tokenizer.render(read_chat(to_message(Request(TURNS, tools=(WEATHER, Tool("now"))))))
    told, _, rest = text.partition("[user]")
    assert told.startswith("[system]Be brief.\n\n")
    assert [
        json.loads(line)["name"] for line in told.splitlines() if line.startswith('{"name": "') and "parameters" in line
    ] == ["weather", "now"]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'
    assert rest == f"Weather in Rom?[assistant]{call}[user]<tool_response>\nsunny\n</tool_response>[assistant]"
    alone = tokenizer.render(read_chat(to_message(Request("hi", tools=(WEATHER,)))))
    assert alone.startswith("[system]You can call")
    assert alone.endswith("[user]hi[assistant]")


def test_variables_are_those_that_the_template_reads() -> None:
    assert rendered(
        TALKS_TOOLS, Request("hi", chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    ) == ("[user]hi[no thoughts]low[assistant]")
    for request, field in (
        (Request("hi", chat_template_kwargs={"thinking": True}), "chat_template_kwargs.thinking"),
        (Request("hi", chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages"),
    ):
        with pytest.raises(
            InvalidRequestError, match=rf"^{field}: is not read .* it reads enable_thinking, reasoning_effort"
        ):
            rendered(TALKS_TOOLS, request)
    with pytest.raises(InvalidRequestError, match=r"^reasoning_effort: is not read .* it reads none"):
        rendered("{{ messages }}", Request("hi", reasoning_effort="low"))


def test_numbers_of_variables_stay_whole() -> None:
    asked = Request("hi", chat_template_kwargs={"budget": 100, "share": 0.5, "list": [1, {"a": None}]})
    assert rendered("{{ budget }} {{ share }} {{ list }}", asked) == "100 0.5 [1, {'a': None}]"


@pytest.mark.parametrize("template", ["{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ messages.nothing.at_all }}"])
def test_a_template_that_fails_is_told_of_by_name(template: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^chat\.messages: the model's chat template"):
        rendered(template, Request("hi"))


DEEP = "[" * 40 + "]" * 40


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        (Message("robot", "hi"), "chat.messages[0].role"),  # type: ignore[arg-type]
        (Message("user", "hi", name="x" * 257), "chat.messages[0].name"),
        (Message("user", "hi", tool_call_id="c"), "chat.messages[0].tool_call_id"),
        (Message("tool", "hi", tool_call_id="c" * 257), "chat.messages[0].tool_call_id"),
        (Message("user", "hi", reasoning="hm"), "chat.messages[0].reasoning"),
        (Message("user", "hi", (ToolCall("c", "f", "{}"),)), "chat.messages[0].tool_calls"),
        (Message("assistant", "", (ToolCall("c", "f", "{}"),) * 129), "chat.messages[0].tool_calls"),
        (Message("assistant", "", (ToolCall("c", "", "{}"),)), "chat.messages[0].tool_calls[0].name"),
        (Message("assistant", "", (ToolCall("c" * 257, "f", "{}"),)), "chat.messages[0].tool_calls[0].id"),
        (
            Message("assistant", "", (ToolCall("c", "f", f'{{"a":{DEEP}}}'),)),
            "chat.messages[0].tool_calls[0].arguments",
        ),
    ],
)
def test_turns_that_make_no_sense_are_refused_by_name(turn: Message, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_chat(to_message(Request((turn,))))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({f"v{n}": 1 for n in range(17)}, "chat_template_kwargs"),
        ({"v": json.loads(DEEP)}, "chat_template_kwargs"),
        ({"v": float("nan")}, "chat_template_kwargs"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
def test_variables_are_bounded(variables: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_chat(to_message(Request("hi", chat_template_kwargs=variables, reasoning_effort="high")))
    assert caught.value.field == field


FLAGGING = snapshot(
    [
        parse_policy(
            {
                "domain": "low",
                "risk": "low",
                "bands": [{"from_tokens": 0, "tier": "dense"}],
                "detection": {"flag": "flagged", "literals": ["chemotherapy"]},
            }
        )
    ]
)
HIDING = (
    Request("hi", tools=(Tool("f", "asks of chemotherapy"),)),
    Request("hi", tools=(Tool("f", parameters='{"properties": {"x": {"description": "chemo\\u0074herapy"}}}'),)),
    Request("hi", tools=(Tool("f", parameters={"properties": {"chemotherapy": {}}}),)),
    Request("hi", tools=(Tool("chemotherapy"),), tool_choice=CalledTool("chemotherapy")),
    Request((Message("user", "hi"), Message("assistant", "", (ToolCall("c", "f", '{"a": "chemo\\u0074herapy"}'),)))),
    Request((Message("user", "hi"), Message("assistant", "ok", reasoning="chemotherapy"))),
    Request((Message("user", "hi"), Message("tool", "", tool_call_id="chemotherapy"))),
    Request((Message("user", "hi", name="chemotherapy"),)),
    Request("hi", chat_template_kwargs={"documents": ["chemotherapy"]}),
)


@pytest.mark.parametrize("request_", HIDING)
async def test_nothing_that_a_model_reads_is_hidden_from_the_scan(request_: Request, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    template = "{{ documents }}{% for m in messages %}{{ m }}{% endfor %}{{ tools }}"
    (model / "chat_template.jinja").write_text(template)
    classifier = Classifier(ModelTokenizer(model), 10_000)
    message = to_message(request_)
    classified = await classifier.classify(message, FLAGGING)
    assert classified.signals.flags == {"flagged"}
    assert classified.signals.prompt_bytes >= len("hi\nchemotherapy")


async def test_a_format_is_scanned_though_no_model_reads_it(tmp_path: Path) -> None:
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path)), 10_000)
    for prompt in ({"text": "hi"}, {"token_ids": inference_pb2.TokenIds(ids=[72])}):
        asked = inference_pb2.GenerateRequest(**prompt)
        assert not (await classifier.classify(asked, FLAGGING)).signals.flags
        asked.sampling.response_format.json_schema = '{"properties": {"chemo\\u0074herapy": {}}}'
        assert (await classifier.classify(asked, FLAGGING)).signals.flags == {"flagged"}


async def test_tools_count_in_a_prompts_length(tmp_path: Path) -> None:
    classifier = Classifier(ModelTokenizer(tiny_model(tmp_path, 4096)), 10_000)
    counts = []
    for tools in ((), (WEATHER,)):
        classified = await classifier.classify(to_message(Request("hi", tools=tools)), FLAGGING, exact=True)
        counts.append(classified.signals.min_tokens)
    assert counts[1] - counts[0] > len(json.dumps(WEATHER.parameters))


async def test_control_tokens_in_tools_and_calls_stay_text(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(tiny_model(tmp_path))
    call = ToolCall("<|end|>", "f", json.dumps({"<|end|>": "<|end|>"}))
    turns = (Message("user", "hi"), Message("assistant", "", (call,)))
    tool = Tool("f", "<|end|>", {"<|end|>": ["<|end|>"]})
    text = tokenizer.render(read_chat(to_message(Request(turns, tools=(tool,)))))
    (end,) = tokenizer.encode("<|end|>", special=False)
    assert text.count("end|>") == 5
    assert end not in tokenizer.encode(text, special=False)
