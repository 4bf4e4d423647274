"""Answers of chats taken apart as they come: the same whatever the pieces, and never lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.v1 import inference_pb2, worker_pb2
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError
from sparsity_worker.calls import parsing
from sparsity_worker.calls.parsers import Parsers
from sparsity_worker.calls.parsing import ChatParser, Parsed
from sparsity_worker.calls.wishes import opened
from sparsity_worker.config import WorkerConfig
from support.tiny import tiny_model, tiny_tokenizer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [inference_pb2.Tool(name=name, parameters=json.dumps(SCHEMA)) for name in ("weather", "time")]
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
HERMES, QWEN3 = Parsers("hermes"), Parsers("", "qwen3")


def chat(**choice: Any) -> worker_pb2.ChatParsing:
    told = inference_pb2.ToolChoice(**choice) if choice else None
    return worker_pb2.ChatParsing(tools=TOOLS, tool_choice=told)


def cut(text: str, sizes: Iterable[int]) -> list[str]:
    """Pieces as tokens are: of a few characters, or one mark."""
    pieces, at, left = [], 0, cycle([*sizes, 1])
    while at < len(text):
        mark = next((mark for mark in MARKS if text.startswith(mark, at)), "") if next(left) > 2 else ""
        pieces.append(mark or text[at : at + next(left)])
        at += len(pieces[-1])
    return pieces


def taken_apart(
    parser: ChatParser, pieces: Iterable[str], *, cut_off: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """Text, reasoning and calls of an answer that comes in pieces."""
    found = [*map(parser.push, pieces), parser.push("", last=True, cut_off=cut_off)]
    calls: dict[int, tuple[str, str]] = {}
    for part in (part for each in found for part in each.calls):
        name, arguments = calls.get(part.index, ("", ""))
        assert bool(part.id) == bool(part.name) == (not name), "id and name come once, in the first part"
        calls[part.index] = name or part.name, arguments + part.arguments
    return "".join(each.text for each in found), "".join(each.reasoning for each in found), list(calls.values())


SIZES = st.lists(st.integers(1, 4), max_size=12)


@settings(max_examples=60, deadline=None)
@given(city=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=12), sizes=SIZES)
def test_calls_are_the_same_whatever_the_pieces(city: str, sizes: list[int]) -> None:
    arguments = {"city": city}
    lines = [json.dumps({"name": name, "arguments": arguments}) for name in ("weather", "time")]
    text = "Well. " + "\n".join(f"<tool_call>\n{line}\n</tool_call>" for line in lines)
    said, thought, calls = taken_apart(ChatParser(HERMES, chat()), cut(text, sizes))
    assert (said.strip(), thought) == ("Well.", "")
    assert [(name, json.loads(told)) for name, told in calls] == [("weather", arguments), ("time", arguments)]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES)
def test_thoughts_are_apart_whatever_the_pieces(sizes: list[int]) -> None:
    whole = "<think>so <tag> 🐸 then</think>It is <b>."
    parser = ChatParser(QWEN3, worker_pb2.ChatParsing())
    assert taken_apart(parser, cut(whole, sizes)) == ("It is <b>.", "so <tag> 🐸 then", [])
    begun = ChatParser(QWEN3, worker_pb2.ChatParsing(), True)
    assert taken_apart(begun, cut(whole.removeprefix("<think>"), sizes)) == ("It is <b>.", "so <tag> 🐸 then", [])


def test_what_is_cut_off_is_not_lost() -> None:
    thinking = ChatParser(QWEN3, worker_pb2.ChatParsing(), True)
    assert taken_apart(thinking, ["still thinking ", "</thi"]) == ("", "still thinking </thi", [])
    calling = ChatParser(HERMES, chat())
    _, _, calls = taken_apart(
        calling, cut('<tool_call>\n{"name": "weather", "arguments": {"city": "Wi', [3]), cut_off=True
    )
    assert calls == [("weather", '{"city": "Wi')]
    assert calling.calls is not None
    assert calling.calls.any


def test_a_call_may_follow_thoughts() -> None:
    parser = ChatParser(Parsers("hermes", "qwen3"), chat(), True)
    line = '<tool_call>\n{"name": "time", "arguments": {"city": "Rom"}}\n</tool_call>'
    assert taken_apart(parser, cut(f"hm</think>{line}", [4, 3])) == ("", "hm", [("time", '{"city": "Rom"}')])


@pytest.mark.parametrize("told", [None, worker_pb2.ChatParsing()])
def test_text_without_tools_and_thoughts_is_left_as_it_is(told: worker_pb2.ChatParsing | None) -> None:
    parser = ChatParser(HERMES, told)
    assert parser.idle
    assert parser.push("<tool_call>{", last=True) == Parsed("<tool_call>{")


@pytest.mark.parametrize("parser", ["hermes", "qwen", "mistral", "llama3", "glm45"])
@pytest.mark.parametrize("choice", [{"mode": inference_pb2.TOOL_CHOICE_MODE_REQUIRED}, {"name": "time"}])
def test_a_demanded_call_is_held_to_its_tools(parser: str, choice: dict[str, Any]) -> None:
    made = ChatParser(Parsers(parser, "qwen3"), chat(**choice))
    assert made.calls is not None
    (held,) = made.calls.constraint.values()
    assert ("weather" in held, "time" in held, '"required": ["city"]' in held) == ("name" not in choice, True, True)
    # A grammar leaves no room for thoughts.
    assert made.reasoning is None


def test_a_model_that_may_call_is_held_to_nothing_but_strict_schemas() -> None:
    free = ChatParser(HERMES, chat())
    assert free.calls is not None
    assert free.calls.constraint == {}
    strict = worker_pb2.ChatParsing(tools=[inference_pb2.Tool(name="f", parameters=json.dumps(SCHEMA), strict=True)])
    held = ChatParser(HERMES, strict)
    assert held.calls is not None
    assert "city" in held.calls.constraint["structural_tag"]


def test_a_model_that_may_call_nothing_is_read_as_text() -> None:
    assert ChatParser(HERMES, chat(mode=inference_pb2.TOOL_CHOICE_MODE_NONE)).idle


def test_calls_that_nobody_can_read_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"^tools: .*--tool-parser"):
        ChatParser(Parsers(), chat())


def test_a_parser_that_fails_leaves_the_rest_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = ChatParser(HERMES, chat())

    def fails(self: Any, text: str) -> Parsed:
        raise RuntimeError("a stranger's mistake")

    monkeypatch.setattr(parsing.ToolCalls, "push", fails)
    assert taken_apart(parser, ["a", "b"]) == ("ab", "", [])


def test_the_end_of_a_prompt_tells_whether_thoughts_have_begun() -> None:
    markers = (7, 8)
    assert opened([1, 7], markers) is True
    assert opened([7, 1, 8, 2], markers) is False
    assert opened([1, 2], markers) is opened([7, 7], ()) is None
    # One that a caller wrote long before says nothing.
    assert opened([7, *[1] * 9], markers) is None


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", Parsers("hermes")),
        ("{{ tools }}<tool_call>", Parsers("hermes")),
        ("{{ tools }}[TOOL_CALLS]", Parsers("mistral")),
        ("{{ tools }}", Parsers()),
    ],
)
def test_parsers_go_by_the_template(template: str, found: Parsers, tmp_path: Any) -> None:
    model = tiny_model(tmp_path)
    (model / "chat_template.jinja").write_text(template)
    assert Parsers.of(WorkerConfig("w", ("dense",), model), tiny_tokenizer()) == found


def test_an_operator_names_parsers(tmp_path: Any) -> None:
    model, tokenizer = tiny_model(tmp_path), tiny_tokenizer()
    named = WorkerConfig("w", ("dense",), model, tool_parser="pythonic", reasoning_parser="deepseek-r1")
    assert Parsers.of(named, tokenizer) == Parsers("pythonic", "deepseek-r1")
    assert Parsers.of(WorkerConfig("w", ("dense",), model, tool_parser="none"), tokenizer) == Parsers()
    for option in ("tool_parser", "reasoning_parser"):
        wrong: Any = {option: "best"}
        with pytest.raises(ConfigurationError, match=rf"--{option.replace('_', '-')}: best is none of auto, none, "):
            Parsers.of(WorkerConfig("w", ("dense",), model, **wrong), tokenizer)
