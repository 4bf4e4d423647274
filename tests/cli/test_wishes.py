"""Options of `sparsity generate` about what an answer is like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparsity.v1 import inference_pb2
from sparsity_cli.main import app
from sparsity_cli.requests.wishes import Wishes, as_written
from sparsity_client.wire import make_request
from sparsity_client.wire.requests import user_turn
from sparsity_client.wire.values import Gathered
from typer.testing import CliRunner


def test_wishes_are_put_into_a_request(tmp_path: Path) -> None:
    schema, grammar, tools = (tmp_path / name for name in ("schema", "grammar", "tools"))
    schema.write_text('{"type": "object"}')
    grammar.write_text('root ::= "a"')
    tools.write_text(json.dumps([{"name": "f", "parameters": {"type": "object"}}, {"name": "g", "description": "d"}]))
    request = make_request(user_turn("hi"), domain="rag", max_new_tokens=5)
    Wishes(schema, tools=tools, choice="f", top=2, seed=7, model="m").add_to(request)
    assert (request.chat.messages[0].content, request.context.domain, request.sampling.max_new_tokens) == (
        "hi",
        "rag",
        5,
    )
    assert request.sampling.response_format.json_schema == '{"type": "object"}'
    assert [tool.name for tool in request.tools] == ["f", "g"]
    assert (request.tool_choice.name, request.logprobs.top, request.sampling.seed, request.model) == ("f", 2, 7, "m")
    for wishes, form in ((Wishes(pattern="a+"), "regex"), (Wishes(grammar=grammar), "grammar")):
        other = make_request(user_turn("hi"))
        wishes.add_to(other)
        assert other.sampling.response_format.WhichOneof("format") == form
    plain = make_request(user_turn("hi"))
    bare = inference_pb2.GenerateRequest()
    bare.CopyFrom(plain)
    Wishes().add_to(plain)
    assert plain == bare


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json-schema", "/nowhere/x"], "--json-schema: cannot read /nowhere/x"),
        (["--grammar", "/nowhere/x"], "--grammar: cannot read /nowhere/x"),
        (["--tools", "/nowhere/x"], "--tools: cannot read /nowhere/x"),
        (["--tools", "{folder}/word"], "tools: {folder}/word is no JSON list of tools"),
        (["--tools", "{folder}/strange"], "tools: {folder}/strange is no JSON list of tools"),
        (["--regex", "a", "--grammar", "{folder}/word"], "sampling.response_format: is given more than once"),
        (["--seed", "-1"], "sampling.seed: cannot be sent"),
    ],
)
def test_wishes_that_make_no_sense_are_told_in_a_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("tools")
    (tmp_path / "strange").write_text('[{"colour": 1}]')
    given = [each.format(folder=tmp_path) for each in arguments]
    result = CliRunner().invoke(app, ["generate", "hi", *given, "--router", "127.0.0.1:1"])
    assert result.exit_code == 2, result.output
    assert words.format(folder=tmp_path) in " ".join(result.stderr.split())


def test_what_was_answered_is_printed_by_name() -> None:
    gathered = Gathered()
    place = inference_pb2.TokenLogprob(
        token_id=1,
        token=b"a",
        logprob=-0.5,
        top=[inference_pb2.TokenAlternative(token_id=2, token=b"\xf0", logprob=-1.0)],
    )
    call = inference_pb2.ToolCallDelta(id="c", name="f", arguments="{}")
    gathered.add(inference_pb2.GenerateResponse(text="a", reasoning="hm", tool_calls=[call], logprobs=[place]))
    told: dict[str, Any] = as_written(gathered)
    assert told == {
        "text": "a",
        "reasoning": "hm",
        "tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}],
        "logprobs": [{"token": "a", "logprob": -0.5, "top": {"\ufffd": -1.0}}],
    }
    assert as_written(Gathered()) == {"text": ""}
